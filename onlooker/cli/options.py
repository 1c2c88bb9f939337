"""Options that several commands share, so that they mean the same everywhere."""

from typing import Annotated

import typer

Source = Annotated[
    str, typer.Argument(help="A video file, a URL, or [bold]synthetic[/] (Pocket World; synthetic:7 is seed 7).")
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="pocket, pocket-aware, a local folder, or a Hugging Face id.")
]
Encoder = Annotated[str, typer.Option(help="Vision encoder method, as name or name:key=value,... (onlooker methods).")]
Compressor = Annotated[str, typer.Option(help="Token compressor, as name or name:key=value,...")]
Memory = Annotated[str, typer.Option(help="Memory policy, as name or name:key=value,...")]
Fps = Annotated[float, typer.Option(help="Frames looked at per second of video.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]

DEFAULTS = {"encoder": "stc_cacher", "compressor": "stc_pruner", "memory": "rekv"}
