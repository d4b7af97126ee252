package jobspec

import (
	"slices"
	"time"
)

// Limits of one spec. They keep the numbers of kinds and fields within 8 bits and a hostile spec cheap.
const (
	// TextBytesMax bounds the text of a spec.
	TextBytesMax = 1 << 20
	// SourcesMax, KindsMax and FieldsMax bound the sources, key kinds and fields of a job.
	SourcesMax = 200
	KindsMax   = 200
	FieldsMax  = 200
	// ScenariosMax and ReportsMax bound the scenarios and reports of a job.
	ScenariosMax = 200
	ReportsMax   = 100

	pathsMax  = 16   // paths of one key kind of one source
	valuesMax = 1000 // entries of a map, values of a condition, columns of a table
	stepMax   = 64   // characters of a constant step, at most 256 bytes as decoders allow
	valueMax  = 1024 // characters of a constant value, at most 4096 bytes as decoders allow
)

var (
	jobForm  = newForm(`[a-z0-9][a-z0-9-]{0,62}`, "lower-case letters, digits and '-', at most 63, not starting with '-'")
	nameForm = newForm(`[a-z][a-z0-9_]{0,62}`, "lower-case letters, digits and '_', at most 63, starting with a letter")
	// Kafka would take "." and ".." apart from these; they name folders elsewhere.
	topicForm   = newForm(`[A-Za-z0-9_-][A-Za-z0-9._-]{0,248}`, "a Kafka topic: letters, digits, '.', '_' and '-', at most 249")
	zoneForm    = newForm(`[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*`, "an IANA zone such as Asia/Shanghai")
	measureForm = newForm(`(count|sum)\( *([a-z][a-z0-9_]*)? *\)`,
		"count(), count(scenario), sum(field), sum(duration) or sum(events)")
	freezeForm = newForm(`(Mon|Tue|Wed|Thu|Fri|Sat|Sun) ([01][0-9]|2[0-3]):[0-5][0-9]-(Mon|Tue|Wed|Thu|Fri|Sat|Sun) `+
		`([01][0-9]|2[0-3]):[0-5][0-9]( [A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*)?`,
		"a range such as 'Fri 18:00-Mon 08:00 Asia/Shanghai'")
	shareForm   = newForm(`(>=|>|<=|<) *(0(\.[0-9]{1,9})?|1(\.0{1,9})?)`, "a comparison with a share, such as '>= 0.999'")
	lagForm     = newForm(`(<=|<) *`+durationText, "a comparison with a duration, such as '<= 30s'")
	instantForm = newForm(`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z`, "a time such as 2026-03-01T00:00:00Z")
	prefixForm  = newForm(`[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*/`, "folders that end in a slash, such as lake/orders/")
	anyNameForm = newForm(`(.|\n)+`, "text")
)

// formatNames lists the formats of records.
func formatNames() []string {
	return []string{"json", "canal", "debezium", "maxwell", "nginx", "csv", "logfmt", "regex", "avro", "protobuf"}
}

// option is a field of a source that belongs to some formats only.
type option struct {
	name    string
	needed  bool     // every format that has the option needs it
	formats []string // the formats that have it
	beside  bool     // belongs beside `format`, never in its mapping
	shape   *shape
}

func formatOptions() []option {
	return []option{
		{name: "log_format", needed: true, formats: []string{"nginx"},
			shape: text("nginx: the log_format string of the server's configuration.", 16<<10)},
		{name: "columns", needed: true, formats: []string{"csv"},
			shape: list("csv: the names of the columns, in order.", 1, valuesMax, text("Name of a column.", 256)).distinct()},
		{name: "delimiter", formats: []string{"csv"},
			shape: text(`csv: the byte between columns; default ",".`, 1)},
		{name: "pattern", needed: true, formats: []string{"regex"},
			shape: text("regex: an RE2 expression with named groups, such as (?P<order>[0-9]+).", 16<<10)},
		{name: "schema", needed: true, formats: []string{"avro", "protobuf"},
			shape: text("avro: the schema as JSON, or a file beside the spec. protobuf: a file with a FileDescriptorSet.", 256<<10)},
		{name: "message", needed: true, formats: []string{"protobuf"},
			shape: text("protobuf: the full name of the message, such as pay.v1.Order.", 1024)},
		{name: "confluent", formats: []string{"avro", "protobuf"},
			shape: boolean("avro, protobuf: records start with the Confluent header (a zero byte and a schema id of 4 bytes).")},
		{name: "each", formats: []string{"json", "avro", "protobuf"}, beside: true,
			shape: path("Path of an array whose elements are the events; by default the record is one event.")},
	}
}

func path(doc string) *shape { return text(doc, 1024) }

func name(doc string) *shape { return formed(doc, nameForm) }

// specShape is the shape of a whole spec.
func specShape() *shape {
	return object("A Weft job: what it reads, how records link into sessions, and which scenarios and reports it computes.",
		must("version", enum("Version of the spec format.", Version)),
		must("job", formed("Name of the job.", jobForm)),
		may("shard_by", name("Field that all events of a session share and that divides the job into shards; by default one shard.")),
		must("sources", dict("The sources by name: each says how the records of one topic become events.",
			1, SourcesMax, nameForm, sourceShape())),
		must("session", sessionShape()),
		may("watermark", object("How completeness of event time is estimated.",
			may("delay", duration("How far the watermark stays behind the largest event time.", 0, 30*day)).or("30s"),
			may("idle_after", duration("How long a partition must be empty at its end before it no longer holds the watermark.",
				time.Second, day)).or("1m"),
			may("max_ahead", duration("How far past its broker timestamp one record can advance the watermark.",
				0, 366*day)).or("1h"),
		)).or("{}"),
		may("user", name("Field that groups sessions in the user view; it never links.")),
		may("ignore", list("Key values that never link.", 0, 100, scalar("A key value."))).or(`["", "null", "0", "-"]`),
		may("scenarios", list("Business situations, each decided for every session.", 0, ScenariosMax, scenarioShape())),
		may("reports", list("Counts of sessions by window of their start and by fields.", 0, ReportsMax, reportShape())),
		may("sinks", object("Where results go beside the store.",
			may("topic", formed("Kafka topic of the served changes.", topicForm)),
			may("parquet", boolean("Write sessions as Parquet.")),
		)),
		may("rollback_window", duration("How long the previous version keeps running after a promotion.", 0, 30*day)).or("24h"),
		may("approval", enum("Who must agree to a promotion.", "none", "two_person")).or("none"),
		may("freeze", list("Weekly ranges in which nothing is promoted.", 0, 100,
			formed("From and to by day and time, with a zone (default UTC).", freezeForm))),
		may("canary", canaryShape()),
		may("resources", object("Bounds of the process of one job version.",
			may("cpu", number("Processors.", 0, 1024)).or("1"),
			may("memory", size("Memory.", 64<<20, 1<<50)).or("1GiB"),
		)).or("{}"),
		may("expect", list("Intended differences from the version before: names of scenarios, or sessions.", 0, ScenariosMax+1,
			name("Name of a scenario, or sessions.")).distinct()),
		may("limits", object("Bounds of one session.",
			may("timeline_events", integer("Least events that the timeline of a session lists.", 1, 2048)).or("1000"),
		)).or("{}"),
	)
}

func sourceShape() *shape {
	formatFields := []prop{must("name", enum("Name of the format.", formatNames()...))}
	var besideFormat []prop
	for _, o := range formatOptions() {
		besideFormat = append(besideFormat, may(o.name, o.shape))
		if !o.beside {
			formatFields = append(formatFields, may(o.name, o.shape))
		}
	}
	values := list("The values, one of which must match.", 1, valuesMax, scalar("A value.")).distinct()
	s := object("One source.", slices.Concat([]prop{
		may("topic", formed("Kafka topic; default the name of the source.", topicForm)),
		must("format", either("Format of the records, by name or with its options.",
			enum("Name of the format.", formatNames()...),
			object("A format with its options.", formatFields...))),
	}, besideFormat, []prop{
		may("where", dict("Conditions by path; an event that fails one is skipped.", 1, 100, anyNameForm,
			either("The value or values allowed.", scalar("A value."), values))),
		may("time", either("Where the event time stands. Default of nginx: $msec, $time_iso8601 or $time_local; of canal, debezium and maxwell: ts, the change's own time.",
			path("Path of the time."),
			object("A time with its layout.",
				must("field", path("Path of the time.")),
				may("layout", text("unix_s, unix_ms, unix_us, unix_ns, rfc3339 (the default), or a Go layout.", 100)),
				may("zone", formed("IANA zone of times that name none; default UTC.", zoneForm))))),
		must("step", either("The business step of an event.",
			path("Path of the step."),
			object("A step that is constant or mapped.",
				may("field", path("Path of the step.")),
				may("map", replacements("Steps by the value they replace; other values stay as they are.", stepMax)),
				may("value", text("The step of every event of this source.", stepMax)),
			).exactlyOne("field", "value").with("map", "field"))),
		may("keys", dict("Paths of link keys by key kind. Events that share a value of a kind link.", 1, KindsMax, nameForm,
			either("One path or several.", path("Path of the key."),
				list("Paths of the key.", 1, pathsMax, path("Path of the key.")).distinct()))),
		may("fields", dict("Paths of fields by name. Fields describe sessions and never link.", 1, FieldsMax, nameForm,
			either("A path, or more about the field.", path("Path of the field."),
				object("A field with its type.",
					may("path", path("Path of the field.")),
					may("value", constant("The value of the field on every event of this source.", valueMax)),
					may("type", enum("Default: int where a report sums the field or scale is given, else string.",
						string(StringField), string(IntField))),
					may("scale", integer("Decimal digits to shift, so that 6.00 with scale 2 is 600.", 0, 18)),
					may("map", replacements("Values by the value they replace; other values stay as they are.", valueMax)),
				).exactlyOne("path", "value").with("scale", "path").with("map", "path")))),
		may("dedupe", list("Paths; events of one step that agree in all of them count once.", 1, pathsMax, path("A path.")).distinct()),
		may("shard", constant("Constant in place of the shard field.", valueMax)),
		may("parquet", parquetShape()),
	})...)
	s.extra = formatConditions
	return s
}

func parquetShape() *shape {
	column := func(doc string) *shape { return text(doc, 1024) }
	return object("History of the source that others wrote as Parquet: a row is a record.",
		may("path", formed("Prefix of the files in the object store, such as lake/orders/. Other files are given to a replay.", prefixForm)),
		may("columns", dict("Columns by the path that they fill; what is not listed is a column of the path's own name.",
			1, valuesMax, anyNameForm, column("Name of a column; of one within another, such as order.id."))),
		may("value", column("Column that holds whole records, in the source's format; by default rows become JSON records.")),
		may("partition", column("Column of the record's partition in the topic, so that it is the same event there.")),
		may("offset", column("Column of the record's offset.")),
		may("before", formed("Rows with events from this time on are left out, since the archive has them.", instantForm)),
	).with("partition", "offset").with("offset", "partition")
}

// constant is a value of 1 to most characters that stands in for one of the records.
func constant(doc string, most int64) *shape {
	s := scalar(doc)
	s.least, s.most = 1, most
	return s
}

func replacements(doc string, most int64) *shape {
	return dict(doc, 1, valuesMax, anyNameForm, constant("The value instead.", most))
}

func sessionShape() *shape {
	const reach = 366 * day
	return object("How far events link.",
		must("gap", duration("Events that share a key link when their times differ by at most this.", time.Microsecond, reach)),
		may("gaps", dict("Gaps of their own by key kind.", 1, KindsMax, nameForm,
			duration("The gap of this kind.", time.Microsecond, reach))),
		may("settle", duration("A scenario without a moment of its own is decided this long after the session's end.", 0, reach)).or("10m"),
		may("max_span", duration("Span past which an endless chain is cut; at least the largest gap. "+
			"Default: 10 days, or twice the largest gap where that is more.", time.Microsecond, durationMax)),
		may("retention", duration("Events further behind the watermark than this are late.", 0, reach)).or("24h"),
	)
}

func scenarioShape() *shape {
	return object("One business situation.",
		must("name", name("Name of the scenario.")),
		must("when", expr("CEL expression that tells whether a session is in this situation.")),
		may("after", object("The moment at which the scenario is decided; later events do not count for it.",
			must("from", expr(`CEL expression of the time to count from, such as step("paid").first.`)),
			must("within", duration("How long after it.", 0, 366*day)))),
		may("severity", enum("How bad it is.", "info", "warning", "critical")).or("info"),
	)
}

func reportShape() *shape {
	return object("One report.",
		must("name", name("Name of the report.")),
		must("every", duration("Length of a window of session starts.", time.Second, 366*day)),
		may("by", list("Fields that divide the report.", 0, 16, name("Name of a field.")).distinct()),
		must("measures", dict("Measures by name.", 1, 100, nameForm,
			formed("count(), count(scenario), sum(field), sum(duration) or sum(events).", measureForm))),
	)
}

func canaryShape() *shape {
	share := func(doc string) *shape { return formed(doc, shareForm) }
	return object("How a new version is tried before it is promoted.",
		may("by", name("Field whose values are divided between the versions: the user field, which is the default.")),
		must("steps", list("Steps with increasing weight.", 1, 20, object("One step.",
			must("weight", integer("Percent of the queries that the new version answers.", 1, 100)),
			must("hold", duration("How long at least.", 0, 30*day))))),
		may("warm_up", duration("Within which the new version must have caught up; by default as long as it gets nearer.", time.Minute, 366*day)),
		may("gates", dict("Conditions that the new version must meet: the metrics below, or a CEL expression by a name of one's own.",
			1, 50, nameForm, expr("A CEL expression."),
			may("match_rate", share("Share of sessions that agree in both versions.")),
			may("reject_rate", share("Share of records that are rejected.")),
			may("scenario_shift", share("Largest change of a scenario's share of the sessions.")),
			may("lag", formed("How far the new version is behind.", lagForm)),
			may("min_sessions", integer("Sessions compared, without which the result is inconclusive.", 0, 1<<40)))),
	)
}

// formatConditions writes which options belong to which formats as conditions of the JSON Schema, both for options
// beside `format` and for options in its mapping.
func formatConditions() []any {
	formatIs := func(names []string) jsonObject {
		return jsonObject{"properties": jsonObject{"format": jsonObject{"anyOf": []any{
			jsonObject{"enum": names},
			jsonObject{"type": "object", "properties": jsonObject{"name": jsonObject{"enum": names}}},
		}}}}
	}
	var all []any
	for _, o := range formatOptions() {
		beside := jsonObject{"required": []string{o.name}}
		inside := jsonObject{"required": []string{"format"},
			"properties": jsonObject{"format": jsonObject{"type": "object", "required": []string{o.name}}}}
		given := jsonObject{"anyOf": []any{beside, inside}}
		all = append(all, jsonObject{"if": given, "then": formatIs(o.formats)})
		if !o.beside {
			all = append(all, jsonObject{"not": jsonObject{"allOf": []any{beside, inside}}})
		}
		if o.needed {
			all = append(all, jsonObject{"if": formatIs(o.formats), "then": given})
		}
	}
	return all
}
