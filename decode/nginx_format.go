package decode

import (
	"fmt"
	"strings"
)

// escaping is how nginx escapes the values of a log_format.
type escaping uint8

const (
	escapeDefault escaping = iota // \xHH for quotes, backslashes and control bytes; an absent value is "-"
	escapeJSON                    // as in a JSON string; an absent value is empty
	escapeNone
)

// logVariable is one $variable of a log_format and the literal text up to the next one.
type logVariable struct {
	name string
	end  string // empty only for the last variable: its value reaches the end of the line
}

// logFormat is a parsed log_format: prefix, then variables, each followed by its literal.
type logFormat struct {
	escape    escaping
	prefix    string
	variables []logVariable
}

// parseLogFormat parses the text of nginx's log_format directive: the format itself, or what follows the word
// log_format in a configuration, such as: main escape=json '$remote_addr ' '$status';
func parseLogFormat(text string) (logFormat, error) {
	var lf logFormat
	text, err := lf.unquote(strings.TrimSpace(text))
	if err != nil {
		return lf, err
	}
	literal := &lf.prefix
	for text != "" {
		at := strings.IndexByte(text, '$')
		if at < 0 {
			at = len(text)
		}
		*literal += text[:at]
		if text = text[at:]; text == "" {
			break
		}
		name, rest, err := logVariableName(text)
		if err != nil {
			return lf, err
		}
		if n := len(lf.variables); n > 0 && lf.variables[n-1].end == "" {
			return lf, fmt.Errorf("$%s follows $%s without a separator, so their values cannot be told apart", name, lf.variables[n-1].name)
		}
		lf.variables = append(lf.variables, logVariable{name: name})
		literal = &lf.variables[len(lf.variables)-1].end
		text = rest
	}
	if len(lf.variables) == 0 {
		return lf, fmt.Errorf("the log format has no $variable")
	}
	return lf, nil
}

// unquote reads the configuration syntax around a format (name, escape parameter, quoted parts, semicolon) and returns
// the format. Text that does not start like a directive is the format itself.
func (lf *logFormat) unquote(text string) (string, error) {
	if word, rest := cutWord(text); word == "log_format" {
		_, text = cutWord(rest) // the name of the format
	}
	if word, rest := cutWord(text); strings.HasPrefix(word, "escape=") {
		switch mode := word[len("escape="):]; mode {
		case "default":
		case "json":
			lf.escape = escapeJSON
		case "none":
			lf.escape = escapeNone
		default:
			return "", fmt.Errorf("escape=%s is unknown; expected default, json or none", mode)
		}
		text = rest
	}
	if !strings.HasPrefix(text, "'") {
		return text, nil
	}
	var out strings.Builder
	for text != "" && text != ";" {
		if text[0] != '\'' && text[0] != '"' {
			return "", fmt.Errorf("expected a quoted part of the log format, found %.20q", text)
		}
		n, err := unquoteConfig(&out, text)
		if err != nil {
			return "", err
		}
		text = strings.TrimSpace(text[n:])
	}
	return out.String(), nil
}

// cutWord splits text at its first white space.
func cutWord(text string) (word, rest string) {
	n := strings.IndexAny(text, " \t\r\n")
	if n < 0 {
		return text, ""
	}
	return text[:n], strings.TrimSpace(text[n:])
}

// unquoteConfig appends the content of the quoted string that text starts with, and returns its length with quotes.
func unquoteConfig(out *strings.Builder, text string) (int, error) {
	for i := 1; i < len(text); i++ {
		c := text[i]
		if c == text[0] {
			return i + 1, nil
		}
		if c == '\\' && i+1 < len(text) {
			switch text[i+1] {
			case '\'', '"', '\\':
				i++
				c = text[i]
			case 't':
				i++
				c = '\t'
			case 'n':
				i++
				c = '\n'
			case 'r':
				i++
				c = '\r'
			}
		}
		out.WriteByte(c)
	}
	return 0, fmt.Errorf("the log format has an opening %c without a closing one", text[0])
}

// logVariableName splits the $name or ${name} that text starts with from the rest.
func logVariableName(text string) (name, rest string, err error) {
	body := text[1:]
	if inner, ok := strings.CutPrefix(body, "{"); ok {
		name, rest, ok = strings.Cut(inner, "}")
		if !ok {
			return "", "", fmt.Errorf("%.20q has no closing brace", text)
		}
	} else {
		n := 0
		for n < len(body) && isNameByte(body[n]) {
			n++
		}
		name, rest = body[:n], body[n:]
	}
	if name == "" {
		return "", "", fmt.Errorf("%.20q is no variable: a name must follow the dollar sign", text)
	}
	return name, rest, nil
}

func isNameByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
