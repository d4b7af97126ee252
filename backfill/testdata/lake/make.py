"""Writes the JSON sources of a generated payment environment as typed tables, with DuckDB, in folders by app:

    weft gen --out pay --orders 150 --seed 3 --span 12h
    python make.py pay          # in this folder, with duckdb 2.0.0 and pyarrow 26.0.1 installed

Lines that are no JSON, or whose values are not of the table's types, are left out: nothing of them is in a session either. part and
line are the place of the record in its topic.
"""

import datetime as dt
import decimal
import json
import shutil
import sys

import duckdb
import pyarrow as pa

UTC, SHANGHAI = dt.timezone.utc, dt.timezone(dt.timedelta(hours=8))


def whole(v):
    return None if v is None else int(str(v))


def text(v):
    return None if v is None else str(v)


def millis(v):
    return None if v is None else dt.datetime.fromtimestamp(0, UTC) + dt.timedelta(milliseconds=whole(v))


def client(r):
    return {
        "batch": text(r.get("batch")), "app": text(r.get("app")), "account": text(r.get("account")),
        "device": {"id": text((r.get("device") or {}).get("id")), "os": text((r.get("device") or {}).get("os"))},
        "events": [{"seq": whole(e.get("seq")), "name": text(e.get("name")), "ts": whole(e.get("ts")), "order": text(e.get("order")),
                    "receipt": text(e.get("receipt"))} for e in r.get("events") or []],
    }


def orders(r):
    o, u = r.get("order") or {}, r.get("user") or {}
    return {
        "event_id": text(r.get("event_id")), "created_at": millis(r.get("ts")), "event": text(r.get("event")), "app": text(r.get("app")),
        "order_id": text(o.get("id")), "order": {"type": text(o.get("type")), "amount": whole(o.get("amount")), "currency": text(o.get("currency"))},
        "uid": text(u.get("id")), "channel": text(r.get("channel")),
    }


def wallet(r):
    at = r.get("notify_time")
    return {
        "notify_id": text(r.get("notify_id")), "notified": at and dt.datetime.strptime(at, "%Y-%m-%d %H:%M:%S"), "app": text(r.get("app")),
        "channel": text(r.get("channel")), "txn": text(r.get("trade_no")), "out_trade_no": text(r.get("out_trade_no")),
        "trade_status": text(r.get("trade_status")), "total_amount": r.get("total_amount") and decimal.Decimal(r["total_amount"]),
    }


S, I = pa.string(), pa.int64()
TABLES = {
    "client": (client, [("batch", S), ("app", S), ("account", S), ("device", pa.struct([("id", S), ("os", S)])),
                        ("events", pa.list_(pa.struct([("seq", I), ("name", S), ("ts", I), ("order", S), ("receipt", S)])))]),
    "orders": (orders, [("event_id", S), ("created_at", pa.timestamp("ms", tz="UTC")), ("event", S), ("app", S), ("order_id", S),
                        ("order", pa.struct([("type", S), ("amount", I), ("currency", S)])), ("uid", S), ("channel", S)]),
    "wallet": (wallet, [("notify_id", S), ("notified", pa.timestamp("us")), ("app", S), ("channel", S), ("txn", S), ("out_trade_no", S),
                        ("trade_status", S), ("total_amount", pa.decimal128(12, 2))]),
}

db = duckdb.connect()
for name, (make, schema) in TABLES.items():
    rows = []
    with open(f"{sys.argv[1]}/{name}.jsonl", "rb") as f:
        for n, line in enumerate(f):
            try:
                rows.append({"part": 0, "line": n, **make(json.loads(line))})
            except (ValueError, AttributeError, TypeError, decimal.DecimalException) as e:
                print(f"{name} {n}: {e}")
    table = pa.Table.from_pylist(rows, pa.schema([("part", pa.int32()), ("line", I)] + schema))
    shutil.rmtree(name, ignore_errors=True)
    db.execute(f"COPY (SELECT * FROM table ORDER BY line) TO '{name}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (app), ROW_GROUP_SIZE 2048)".replace("FROM table", 'FROM "table"'))
