"""Writes the files of this folder with DuckDB, pyarrow and Spark (parquet-mr), each the same rows in the writer's own types, and
rows.jsonl, what every row must become. Run it in this folder with duckdb 2.0.0, pyarrow 26.0.1 and pyspark 3.5.3 installed:

    python make.py
"""

import datetime as dt
import decimal
import json
import os
import shutil

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from pyspark.sql import types as t

decimal.getcontext().prec = 50
START = dt.datetime(2026, 3, 1, 10, 0, 0)


def row(i):
    """Row i as Python values; some are missing, in turn."""
    return {
        "order_id": f"A{i:04d}",
        "receipt": None if i % 3 == 0 else f"r-{i % 7}",
        "created_at": START + dt.timedelta(seconds=i, microseconds=1 + i * 37),
        "event": ["ordered", "paid", "delivered"][i % 3],
        "amount": 600 + i,
        "price": decimal.Decimal(i - 5) + decimal.Decimal("0.25"),
        "big": decimal.Decimal(10) ** 25 * (i - 3) + decimal.Decimal("0.001"),
        "ratio": None if i % 5 == 0 else i / 8 - 1,
        "flag": None if i % 4 == 0 else i % 2 == 0,
        "day": None if i % 6 == 0 else dt.date(1969, 12, 30) + dt.timedelta(days=i),
        "customer": None if i % 8 == 7 else {"id": f"u{i % 9}", "name": None if i % 2 else 'Zoë "Z"\n\\', "age": i},
        "items": None if i % 5 == 4 else [{"sku": f"s{k}", "n": None if k == 1 else k, "tags": [] if k == 0 else ["x"] * k} for k in range(i % 4)],
        "attrs": None if i % 7 == 6 else {f"k{k}": None if k == 2 else f"v{i}" for k in range(i % 3 + (i % 7 == 1))},
    }


ROWS = [row(i) for i in range(100)]


def want(r):
    """The record of a row: what is missing is left out, numbers are exact, times are microseconds."""

    def tidy(v):
        if isinstance(v, dict):
            return {k: tidy(x) for k, x in v.items() if x is not None}
        if isinstance(v, list):
            return [tidy(x) for x in v]
        return v

    out = tidy(dict(r))
    out["created_at"] = int((r["created_at"] - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))
    out["price"] = str(r["price"])
    out["big"] = str(r["big"])
    if r["day"] is not None:
        out["day"] = r["day"].isoformat()
    if r["attrs"] is not None:  # a map keeps its keys
        out["attrs"] = r["attrs"]
    return out


def arrow_table(rows):
    schema = pa.schema([
        ("order_id", pa.string()), ("receipt", pa.string()), ("created_at", pa.timestamp("us")), ("event", pa.string()),
        ("amount", pa.int64()), ("price", pa.decimal128(9, 2)), ("big", pa.decimal128(38, 3)), ("ratio", pa.float64()),
        ("flag", pa.bool_()), ("day", pa.date32()),
        ("customer", pa.struct([("id", pa.string()), ("name", pa.string()), ("age", pa.int32())])),
        ("items", pa.list_(pa.struct([("sku", pa.string()), ("n", pa.int32()), ("tags", pa.list_(pa.string()))]))),
        ("attrs", pa.map_(pa.string(), pa.string())),
    ])
    rows = [dict(r, attrs=None if r["attrs"] is None else list(r["attrs"].items())) for r in rows]
    return pa.Table.from_pylist(rows, schema)


def by_pyarrow():
    table = arrow_table(ROWS)
    for name, options in {
        "snappy": dict(compression="snappy", row_group_size=40),
        "zstd_v2": dict(compression="zstd", data_page_version="2.0", data_page_size=400, row_group_size=64),
        "plain": dict(compression="none", use_dictionary=False, version="1.0"),
        "delta": dict(compression="zstd", use_dictionary=False, column_encoding={
            "order_id": "DELTA_BYTE_ARRAY", "event": "DELTA_LENGTH_BYTE_ARRAY", "amount": "DELTA_BINARY_PACKED", "ratio": "BYTE_STREAM_SPLIT"}),
        "int96": dict(compression="snappy", use_deprecated_int96_timestamps=True),
    }.items():
        pq.write_table(table, f"pyarrow_{name}.parquet", **options)
    pq.write_table(arrow_table(ROWS[:0]), "pyarrow_empty.parquet")
    pq.write_table(arrow_table(ROWS), "pyarrow_gzip.parquet", compression="gzip")
    millis = table.set_column(2, "created_at", table["created_at"].cast(pa.timestamp("ms", tz="UTC"), safe=False))
    pq.write_table(millis, "pyarrow_millis.parquet")


def by_duckdb():
    rows = arrow_table(ROWS)  # DuckDB finds it by its name
    db = duckdb.connect()
    for codec in ["snappy", "zstd"]:
        db.execute(f"COPY (SELECT * FROM rows ORDER BY order_id) TO 'duckdb_{codec}.parquet' (FORMAT parquet, COMPRESSION {codec}, ROW_GROUP_SIZE 2048)")
    db.execute("COPY (SELECT * FROM rows ORDER BY order_id) TO 'duckdb_v2.parquet' (FORMAT parquet, PARQUET_VERSION V2)")
    shutil.rmtree("duckdb_hive", ignore_errors=True)
    db.execute("COPY (SELECT * REPLACE (event || '/' || amount % 2 AS event) FROM rows ORDER BY order_id) TO 'duckdb_hive' (FORMAT parquet, PARTITION_BY (event))")


def by_spark():
    spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
             .config("spark.sql.session.timeZone", "UTC").getOrCreate())
    item = t.StructType([t.StructField("sku", t.StringType()), t.StructField("n", t.IntegerType()),
                         t.StructField("tags", t.ArrayType(t.StringType()))])
    customer = t.StructType([t.StructField("id", t.StringType()), t.StructField("name", t.StringType()), t.StructField("age", t.IntegerType())])
    schema = t.StructType([
        t.StructField("order_id", t.StringType()), t.StructField("receipt", t.StringType()), t.StructField("created_at", t.TimestampType()),
        t.StructField("event", t.StringType()), t.StructField("amount", t.LongType()), t.StructField("price", t.DecimalType(9, 2)),
        t.StructField("big", t.DecimalType(38, 3)), t.StructField("ratio", t.DoubleType()), t.StructField("flag", t.BooleanType()),
        t.StructField("day", t.DateType()), t.StructField("customer", customer), t.StructField("items", t.ArrayType(item)),
        t.StructField("attrs", t.MapType(t.StringType(), t.StringType())),
    ])
    os.environ["TZ"] = "UTC"
    rows = [dict(r, created_at=r["created_at"].replace(tzinfo=dt.timezone.utc)) for r in ROWS]
    frame = spark.createDataFrame(rows, schema).coalesce(1)
    for name, options in {
        "snappy": {"compression": "snappy"},
        "zstd": {"compression": "zstd"},
        "legacy": {"compression": "snappy", "parquet.enable.dictionary": "false"},
    }.items():
        spark.conf.set("spark.sql.parquet.writeLegacyFormat", str(name == "legacy").lower())
        spark.conf.set("spark.sql.parquet.outputTimestampType", "INT96" if name == "legacy" else "TIMESTAMP_MICROS")
        writer = frame.write.mode("overwrite")
        for k, v in options.items():
            writer = writer.option(k, v)
        writer.parquet(f"spark_{name}")
        # one file, and what Spark keeps beside it, under a name that stays the same
        [part] = [f for f in os.listdir(f"spark_{name}") if f.endswith(".parquet")]
        os.rename(f"spark_{name}/{part}", f"spark_{name}/part-00000.parquet")
        for f in os.listdir(f"spark_{name}"):
            if f.endswith(".crc") and f != "._SUCCESS.crc":
                os.rename(f"spark_{name}/{f}", f"spark_{name}/.part-00000.parquet.crc")
    spark.stop()


with open("rows.jsonl", "w") as f:
    for r in ROWS:
        f.write(json.dumps(want(r), ensure_ascii=False) + "\n")
by_pyarrow()
by_duckdb()
by_spark()
