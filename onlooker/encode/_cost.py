"""FLOP of a vision layer, dense and with only some tokens recomputed (multiply-add = 2).

Norms, similarities and the choice of tokens are left out: together under 0.1 % of a layer.
"""

from onlooker.core.contracts import VisionTower


def dense_flop(tower: VisionTower) -> float:
    """One layer on all tokens: four projections, attention, MLP."""
    tokens, dim, inner = tower.num_tokens, tower.dim, tower.mlp_dim or 4 * tower.dim
    return 8 * tokens * dim**2 + 4 * tokens * (tower.mean_attended or tokens) * dim + 4 * tokens * dim * inner


def selective_flop(tower: VisionTower, count: int, all_values: bool = False, reused: str = "both") -> float:
    """One layer that computes keys (and values, if `all_values`) of all tokens and the rest of `count` tokens; with
    `reused` of "attention" or "mlp" the other branch of all."""
    tokens, dim, inner = tower.num_tokens, tower.dim, tower.mlp_dim or 4 * tower.dim
    of_all = 2 if all_values else 1
    projections = 2 * of_all * tokens * dim**2 + 2 * (4 - of_all) * count * dim**2
    others = 4 * (tokens - count) * dim * inner
    if reused == "mlp":
        return dense_flop(tower) - others
    projections += others if reused == "attention" else 0
    return projections + 4 * count * (tower.mean_attended or tokens) * dim + 4 * count * dim * inner


def rows_flop(tower: VisionTower, changed: float, looking: float, mlp: float) -> float:
    """One layer that computes keys and values of `changed` tokens, queries, attention and output projection of
    `looking` ones, and the MLP of `mlp` ones."""
    dim, inner, attended = tower.dim, tower.mlp_dim or 4 * tower.dim, tower.mean_attended or tower.num_tokens
    return 4 * changed * dim**2 + looking * (4 * dim**2 + 4 * attended * dim) + 4 * mlp * dim * inner


def corrected_flop(
    tower: VisionTower, changed: float, looking: float, mlp: float, pairs: float, outputs: float
) -> float:
    """One layer, of shares of a frame: `changed` tokens' keys and values, `looking` ones' queries and attention, `mlp`
    ones' MLP, the attention of `pairs` of a query and a column corrected, and `outputs` projections of all tokens."""
    tokens, attended = tower.num_tokens, tower.mean_attended or tower.num_tokens
    rows = rows_flop(tower, changed * tokens, 0, mlp * tokens)
    attention = (looking + 2 * pairs) * 4 * attended * tower.dim
    return rows + tokens * (attention + 2 * (looking + outputs) * tower.dim**2)


def affordable_count(tower: VisionTower, budget_flop: float, all_values: bool = False) -> int:
    """Most tokens one layer can recompute within `budget_flop`; negative or 0 when not even one."""
    none, one = selective_flop(tower, 0, all_values), selective_flop(tower, 1, all_values)
    return int((budget_flop - none) / (one - none) + 1e-9)
