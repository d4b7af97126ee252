package decode

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// nginx decodes access log lines by the log_format that wrote them. A path is a variable's name, with or without the
// dollar sign, or a part of the request that nginx logs inside another variable: request_method, request_uri,
// request_path (without the query), args, and arg_NAME (one query argument, percent-decoded).
//
// A value ends at the first occurrence of the literal that follows its variable; where that literal begins with a
// quote, quotes escaped by a backslash do not count. The empty value and "-" mean absent.
type nginx struct {
	*frame
	prefix    string
	escape    escaping
	variables []nginxVariable
	needed    int // variables up to the last that the job wants something of; a line may be cut off behind them
}

type nginxVariable struct {
	logVariable
	quoted bool // the value may hold escaped quotes
	parts  []nginxPart
}

// nginxPart takes a part of a variable's value for a slot.
type nginxPart struct {
	slot int
	part requestPart
	arg  string // partArg: name of the argument
	from requestForm
}

type requestPart uint8

const (
	partWhole requestPart = iota
	partMethod
	partURI
	partPath
	partArgs
	partArg
)

// requestForm says how much of a request a variable holds.
type requestForm uint8

const (
	formRequest requestForm = iota // GET /path?args HTTP/1.1
	formURI                        // /path?args
	formArgs                       // args
	formArg                        // the value of one argument
)

func newNginx(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	lf, err := parseLogFormat(src.Format.LogFormat)
	if err != nil {
		return nil, f.problem(src.Format.Pos, "format.log_format", err.Error(), "")
	}
	if layout := nginxTimeLayout(variableName(src.Time.Field)); layout != "" && !f.time.set {
		if err := f.setTime(src, src.Time.Field, layout); err != nil {
			return nil, err
		}
	}
	d := &nginx{frame: f, prefix: lf.prefix, escape: lf.escape}
	for _, v := range lf.variables {
		quoted := lf.escape != escapeNone && strings.HasPrefix(v.end, `"`)
		d.variables = append(d.variables, nginxVariable{logVariable: v, quoted: quoted})
	}
	for slot := range f.slots {
		if !d.bind(slot) {
			return nil, f.badPath(slot, "the log format has no $"+variableName(f.slots[slot].path), "it has "+lf.names())
		}
	}
	for i := range d.variables {
		if len(d.variables[i].parts) > 0 {
			d.needed = i + 1
		}
	}
	return d, nil
}

// quoteShort quotes the start of a literal: it comes from the spec, where it can be long, and a reject's detail is short.
func quoteShort(literal string) string { return strconv.Quote(literal[:min(len(literal), 25)]) }

// nginxTimeLayout returns the layout of nginx's own time variables.
func nginxTimeLayout(variable string) string {
	switch variable {
	case "time_local":
		return "02/Jan/2006:15:04:05 -0700"
	case "time_iso8601":
		return "rfc3339"
	case "msec":
		return "unix_s"
	}
	return ""
}

// variableName returns the name in "name", "$name" or "${name}".
func variableName(path string) string {
	name, dollar := strings.CutPrefix(path, "$")
	if dollar && strings.HasPrefix(name, "{") && strings.HasSuffix(name, "}") {
		return name[1 : len(name)-1]
	}
	return name
}

func (lf *logFormat) names() string {
	names := make([]string, len(lf.variables))
	for i, v := range lf.variables {
		names[i] = "$" + v.name
	}
	return strings.Join(names, " ")
}

// bind finds the variable that has the value of a slot.
func (d *nginx) bind(slot int) bool {
	name := variableName(d.slots[slot].path)
	arg, isArg := strings.CutPrefix(name, "arg_")
	if isArg && d.bindTo(name, nginxPart{slot, partArg, arg, formArg}) {
		return true
	}
	if d.bindTo(name, nginxPart{slot: slot}) {
		return true
	}
	p := nginxPart{slot: slot}
	switch {
	case isArg && arg != "":
		p.part, p.arg = partArg, arg
	case name == "args" || name == "query_string":
		p.part = partArgs
	case name == "request_path":
		p.part = partPath
	case name == "request_uri":
		p.part = partURI
	case name == "request_method":
		p.part = partMethod
	default:
		return false
	}
	if p.part >= partArgs {
		p.from = formArgs
		if d.bindTo("args", p) || d.bindTo("query_string", p) {
			return true
		}
	}
	if p.part >= partPath {
		p.from = formURI
		if d.bindTo("request_uri", p) {
			return true
		}
	}
	p.from = formRequest
	return d.bindTo("request", p)
}

// bindTo takes a part from the variable of that name, if the format has it.
func (d *nginx) bindTo(name string, p nginxPart) bool {
	for i := range d.variables {
		if v := &d.variables[i]; v.name == name {
			v.parts = append(v.parts, p)
			return true
		}
	}
	return false
}

// Decode implements Decoder.
func (d *nginx) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	line := trimLineEnd(b.Raw(r))
	if len(line) < len(d.prefix) || string(line[:len(d.prefix)]) != d.prefix {
		d.reject(b, event.ReasonSyntax, "the line does not begin with "+quoteShort(d.prefix))
		return
	}
	at := len(d.prefix)
	for i := range d.variables {
		v := &d.variables[i]
		n := v.length(line[at:])
		if n < 0 && i >= d.needed {
			break // the line was cut off, behind all that the job wants of it
		}
		if n < 0 {
			d.reject(b, event.ReasonSyntax, "no "+quoteShort(v.end)+" after $"+v.name[:min(len(v.name), 60)])
			return
		}
		if len(v.parts) > 0 {
			d.take(b, v.parts, r.Off+uint32(at), uint32(n))
		}
		if at += n + len(v.end); i == len(d.variables)-1 && at != len(line) {
			d.reject(b, event.ReasonSyntax, "the line goes on after its last variable")
			return
		}
	}
	d.emit(b, 0)
}

// length returns the length of the value that p starts with, or -1 if its end is missing.
func (v *nginxVariable) length(p []byte) int {
	if v.end == "" {
		return len(p)
	}
	for at := 0; ; at++ {
		n := bytes.IndexByte(p[at:], v.end[0])
		if n < 0 {
			return -1
		}
		at += n
		if len(p)-at >= len(v.end) && string(p[at:at+len(v.end)]) == v.end && !(v.quoted && isEscaped(p[:at])) {
			return at
		}
	}
}

// isEscaped tells whether the byte after p is escaped: p ends with an odd number of backslashes.
func isEscaped(p []byte) bool {
	n := len(p)
	for n > 0 && p[n-1] == '\\' {
		n--
	}
	return (len(p)-n)%2 == 1
}

// take delivers the parts of the variable whose value is b.Data[off:off+n].
func (d *nginx) take(b *event.Batch, parts []nginxPart, off, n uint32) {
	value := b.Data[off : off+n]
	if n == 0 || n == 1 && value[0] == '-' {
		return
	}
	if d.escape != escapeNone && bytes.IndexByte(value, '\\') >= 0 {
		off = uint32(len(b.Data))
		b.Data = appendUnescaped(b.Data, value)
		value = b.Data[off:]
		n = uint32(len(value))
	}
	for i := range parts {
		p := &parts[i]
		if p.part == partWhole {
			d.set(p.slot, off, n, kindString)
			continue
		}
		from, to := p.find(value)
		if p.part == partArg && bytes.ContainsAny(value[from:to], "%+") {
			at := len(b.Data)
			b.Data = appendPercentDecoded(b.Data, value[from:to])
			d.set(p.slot, uint32(at), uint32(len(b.Data)-at), kindString)
		} else if from < to {
			d.set(p.slot, off+uint32(from), uint32(to-from), kindString)
		}
	}
}

// find returns the range of the part in the variable's value; an empty one where it is missing.
func (p *nginxPart) find(value []byte) (from, to int) {
	to = len(value)
	if p.from == formRequest {
		method := bytes.IndexByte(value, ' ')
		if method < 0 {
			return 0, 0
		}
		if p.part == partMethod {
			return 0, method
		}
		from = method + 1
		if n := bytes.LastIndexByte(value[from:], ' '); n >= 0 && bytes.HasPrefix(value[from+n:], []byte(" HTTP/")) {
			to = from + n
		}
	}
	if p.part == partURI || p.from == formArg {
		return from, to
	}
	if p.from != formArgs {
		query := bytes.IndexByte(value[from:to], '?')
		switch {
		case p.part == partPath && query >= 0:
			return from, from + query
		case p.part == partPath:
			return from, to
		case query < 0:
			return 0, 0
		}
		from += query + 1
	}
	if p.part == partArgs {
		return from, to
	}
	return findArg(value, from, to, p.arg)
}

// findArg returns the range of the first argument with that name in the query value[from:to]. As in nginx, the case of
// letters in the name does not matter.
func findArg(value []byte, from, to int, name string) (int, int) {
	for from < to {
		end := to
		if n := bytes.IndexByte(value[from:to], '&'); n >= 0 {
			end = from + n
		}
		if n := from + len(name); n < end && value[n] == '=' && equalFold(value[from:n], name) {
			return n + 1, end
		}
		from = end + 1
	}
	return 0, 0
}

// equalFold compares ASCII text without regard to case.
func equalFold(p []byte, s string) bool {
	for i, c := range p {
		if c != s[i] && (c|0x20 != s[i]|0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// trimLineEnd removes one line end.
func trimLineEnd(p []byte) []byte {
	if n := len(p); n > 0 && p[n-1] == '\n' {
		p = p[:n-1]
	}
	if n := len(p); n > 0 && p[n-1] == '\r' {
		p = p[:n-1]
	}
	return p
}
