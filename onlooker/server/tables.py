"""The tables of what a server keeps."""

import sqlalchemy as sql

TABLES = sql.MetaData()
EVENTS = sql.Table(
    "events",
    TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("wall", sql.Float(53), nullable=False, index=True),
    sql.Column("seen_wall", sql.Float(53)),
    sql.Column("time_s", sql.Float(53)),
    sql.Column("stream", sql.Text, nullable=False, index=True),
    sql.Column("owner", sql.Text),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("text", sql.Text, nullable=False),
    sql.Column("facts", sql.Text, nullable=False),
    sqlite_autoincrement=True,  # a number is never used twice, so that a reader can go on from one
)
PICTURES = sql.Table(
    "pictures",
    TABLES,
    sql.Column("event", sql.Integer, sql.ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    sql.Column("jpeg", sql.LargeBinary, nullable=False),
)
CLIPS = sql.Table(
    "clips",
    TABLES,
    sql.Column("event", sql.Integer, sql.ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    sql.Column("media_type", sql.Text, nullable=False),
    sql.Column("data", sql.LargeBinary, nullable=False),
)
MOMENTS = sql.Table(
    "moments",
    TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("wall", sql.Float(53), nullable=False, index=True),
    sql.Column("time_s", sql.Float(53), nullable=False),
    sql.Column("stream", sql.Text, nullable=False, index=True),
    sql.Column("space", sql.Text, nullable=False),
    sql.Column("text", sql.Text, nullable=False),
    sql.Column("vector", sql.LargeBinary, nullable=False),
    sql.Column("jpeg", sql.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""Moments of the sources, to be found by what they look like: a vector (float16, of length 1) in the space of one
model, and the picture."""
