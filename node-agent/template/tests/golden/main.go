// Writes what Go's own text/template makes of cases.json: `go run main.go < cases.json > expected.json`.
//
// The cases share their data; an answer is the template's text, or null where Go refuses or fails.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

// whole numbers stay whole, as the values that job files compute with.
func plain(value any) any {
	switch value := value.(type) {
	case json.Number:
		if number, err := value.Int64(); err == nil {
			return int(number)
		}
		number, _ := value.Float64()
		return number
	case []any:
		for i := range value {
			value[i] = plain(value[i])
		}
	case map[string]any:
		for key := range value {
			value[key] = plain(value[key])
		}
	}
	return value
}

func render(text string, data any) any {
	parsed, err := template.New("case").Parse(text)
	if err != nil {
		return nil
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, data); err != nil {
		return nil
	}
	return out.String()
}

func main() {
	decoder := json.NewDecoder(os.Stdin)
	decoder.UseNumber()
	var cases struct {
		Data      any
		Templates []string
	}
	if err := decoder.Decode(&cases); err != nil {
		panic(err)
	}
	answers := make([]any, len(cases.Templates))
	data := plain(cases.Data)
	for i, text := range cases.Templates {
		answers[i] = render(text, data)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(answers); err != nil {
		panic(err)
	}
}
