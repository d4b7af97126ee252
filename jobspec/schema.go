package jobspec

import (
	"bytes"
	"encoding/json"
	"slices"

	"go.yaml.in/yaml/v3"
)

// jsonObject is one object of the JSON Schema; it is written with its names sorted.
type jsonObject map[string]any

// Schema returns the JSON Schema (draft 2020-12) of a spec, for editors to complete and check. It is as strict as Parse
// about names, types, forms and options of formats; what relates distant places (an unknown field in a report) and the
// bounds of durations and sizes only Parse checks.
func Schema() []byte {
	root := specShape().schema()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Weft job"
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		panic(err) // maps, slices, strings and numbers always encode
	}
	return b.Bytes()
}

func (s *shape) schema() jsonObject {
	o := jsonObject{"description": s.doc}
	switch s.kind {
	case objectShape:
		s.objectSchema(o)
	case dictShape:
		o["type"] = "object"
		o["propertyNames"] = jsonObject{"pattern": s.names.re.String()}
		o["minProperties"], o["maxProperties"] = s.least, s.most
		o["additionalProperties"] = s.elem.schema()
		if len(s.props) > 0 {
			o["properties"] = propSchemas(s.props)
		}
	case listShape:
		o["type"], o["items"] = "array", s.elem.schema()
		o["minItems"], o["maxItems"] = s.least, s.most
		if s.once {
			o["uniqueItems"] = true
		}
	case textShape:
		o["type"] = "string"
		s.textSchema(o)
	case exprShape:
		o["type"], o["pattern"] = "string", `\S`
		s.textSchema(o)
	case scalarShape:
		o["type"] = []string{"string", "number", "boolean"}
		s.textSchema(o)
	case integerShape:
		o["type"], o["minimum"], o["maximum"] = "integer", s.least, s.most
	case numberShape:
		o["type"], o["exclusiveMinimum"], o["maximum"] = "number", s.least, s.most
	case booleanShape:
		o["type"] = "boolean"
	case durationShape:
		o["type"], o["pattern"] = "string", durationForm.String()
	case sizeShape:
		o["type"], o["pattern"] = "string", sizeForm.String()
	case eitherShape:
		alts := make([]any, len(s.alts))
		for i, a := range s.alts {
			alts[i] = a.schema()
		}
		o["anyOf"] = alts
	}
	return o
}

func (s *shape) objectSchema(o jsonObject) {
	o["type"], o["additionalProperties"], o["properties"] = "object", false, propSchemas(s.props)
	var required []string
	for _, p := range s.props {
		if p.required {
			required = append(required, p.name)
		}
	}
	if required != nil {
		o["required"] = required
	}
	if s.one != nil {
		var one []any
		for _, name := range s.one {
			one = append(one, jsonObject{"required": []string{name}})
		}
		o["oneOf"] = one
	}
	if s.needs != nil {
		needs := jsonObject{}
		for field, other := range s.needs {
			needs[field] = []string{other}
		}
		o["dependentRequired"] = needs
	}
	if s.extra != nil {
		o["allOf"] = s.extra()
	}
}

func (s *shape) textSchema(o jsonObject) {
	if s.enum != nil {
		o["enum"] = slices.Clone(s.enum)
		return
	}
	if s.least > 0 {
		o["minLength"] = s.least
	}
	o["maxLength"] = s.most
	if s.form != nil {
		o["pattern"] = s.form.re.String()
	}
}

func propSchemas(props []prop) jsonObject {
	all := jsonObject{}
	for _, p := range props {
		o := p.shape.schema()
		if p.def != "" {
			var def any
			if err := yaml.Unmarshal([]byte(p.def), &def); err != nil {
				panic(err) // the defaults are constants of table.go
			}
			o["default"] = def
		}
		all[p.name] = o
	}
	return all
}
