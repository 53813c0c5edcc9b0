package static

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Error is one thing that is wrong with a file, and where.
type Error struct {
	File         string
	Line, Column int
	Key          string // such as tunnels[0].underlay.vni
	Message      string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// document is a file being read: its nodes by key, and what was found wrong.
type document struct {
	file   string
	nodes  map[string]*yaml.Node
	errors []*Error
}

// parse reads the one YAML or JSON document in data into out, a pointer to a struct or a slice. Unknown keys, repeated
// keys and values of the wrong type are errors.
func parse(file string, data []byte, out any) (*document, error) {
	d := &document{file: file, nodes: make(map[string]*yaml.Node)}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(yamlOf(data)))
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &Error{File: file, Message: "empty: nothing is configured"}
		}
		return nil, d.syntaxError(err)
	}
	if len(root.Content) == 0 {
		return nil, &Error{File: file, Message: "empty: nothing is configured"}
	}
	var extra yaml.Node
	if err := dec.Decode(&extra); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, d.syntaxError(err)
		}
		return nil, &Error{File: file, Line: extra.Line, Column: extra.Column, Message: "a second document: want one"}
	}
	applyDefaults(out)
	d.decode(root.Content[0], reflect.ValueOf(out).Elem(), "")
	return d, d.err()
}

// syntaxError turns the library's "yaml: line 3: …" into an Error at that line.
func (d *document) syntaxError(err error) error {
	line := 1 // where the library names none
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	var named int
	if n, _ := fmt.Sscanf(msg, "line %d:", &named); n == 1 {
		line = named
		_, msg, _ = strings.Cut(msg, ": ")
	}
	return &Error{File: d.file, Line: line, Column: 1, Message: msg}
}

// fail notes an error at a key; when the key is not in the file, at the nearest one around it that is.
func (d *document) fail(key, format string, args ...any) {
	e := &Error{File: d.file, Key: key, Message: fmt.Sprintf(format, args...)}
	for at := key; ; at = parentKey(at) {
		if n := d.nodes[at]; n != nil {
			e.Line, e.Column = n.Line, n.Column
			break
		}
		if at == "" {
			break
		}
	}
	d.errors = append(d.errors, e)
}

func parentKey(key string) string {
	if i := strings.LastIndexAny(key, ".["); i > 0 {
		return key[:i]
	}
	return ""
}

// err returns everything found wrong, in the order of the file, or nil.
func (d *document) err() error {
	slices.SortStableFunc(d.errors, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	all := make([]error, len(d.errors))
	for i, e := range d.errors {
		all[i] = e
	}
	return errors.Join(all...)
}

// decode reads n into v, whose defaults are set, and notes the position of every key.
func (d *document) decode(n *yaml.Node, v reflect.Value, key string) {
	for depth := 0; n.Kind == yaml.AliasNode && depth < 8; depth++ {
		n = n.Alias
	}
	d.nodes[key] = n
	switch {
	case n.Tag == "!!null" && (v.Kind() == reflect.Struct || v.Kind() == reflect.Slice) && !isScalar(v):
		return // "peers:" with nothing behind it
	case v.Kind() == reflect.Struct && !isScalar(v):
		d.decodeStruct(n, v, key)
	case v.Kind() == reflect.Slice:
		d.decodeSlice(n, v, key)
	default:
		_, takesAll := v.Addr().Interface().(yaml.Unmarshaler)
		switch {
		case n.Tag == "!!null":
			d.fail(key, "has no value")
			return
		case n.Kind != yaml.ScalarNode && !takesAll: // the library would take {} for an address, and a list for a MAC
			d.fail(key, "want a single value, got a %s", kindWord(n))
			return
		}
		if isInteger(v) && n.Tag != "!!int" {
			d.fail(key, "%q: want a whole number", n.Value) // the library would cut 1.9 to 1
			return
		}
		if err := n.Decode(v.Addr().Interface()); err != nil {
			d.fail(key, "%s", d.plain(err, n, v))
		}
	}
}

func isInteger(v reflect.Value) bool {
	_, asText := v.Addr().Interface().(interface{ UnmarshalText([]byte) error })
	return v.CanInt() && !asText || v.CanUint() && !asText
}

// plain says what is wrong with a scalar without the library's words for Go types.
func (d *document) plain(err error, n *yaml.Node, v reflect.Value) string {
	var t *yaml.TypeError
	if !errors.As(err, &t) {
		if _, ok := v.Interface().(netip.Prefix); ok {
			return fmt.Sprintf("%q: want an address with prefix length, such as 10.99.0.1/24", n.Value)
		}
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	switch v.Kind() {
	case reflect.Bool:
		return fmt.Sprintf("%q: want true or false", n.Value)
	case reflect.Uint16:
		return fmt.Sprintf("%q: want a whole number within 0-%d", n.Value, math.MaxUint16)
	case reflect.Uint32:
		return fmt.Sprintf("%q: want a whole number within 0-%d", n.Value, uint32(math.MaxUint32))
	case reflect.Int:
		return fmt.Sprintf("%q: want a whole number", n.Value)
	}
	return fmt.Sprintf("%q: not understood", n.Value)
}

func (d *document) decodeSlice(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(key, "want a list, got a %s", kindWord(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		if v.Index(i).Kind() == reflect.Struct {
			applyDefaults(v.Index(i).Addr().Interface())
		}
		d.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
}

func (d *document) decodeStruct(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		d.fail(key, "want keys and values, got a %s", kindWord(n))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		at := name.Value
		if key != "" {
			at = key + "." + name.Value
		}
		field, ok := fieldByKey(v, name.Value)
		switch first, repeated := seen[name.Value]; {
		case name.Tag == "!!merge":
			d.nodes[at] = name
			d.fail(at, "merge keys are not read: write the keys out")
		case !ok:
			d.nodes[at] = name
			d.fail(at, "unknown key%s", knownKeys(v.Type()))
		case repeated:
			d.nodes[at] = name
			d.fail(at, "given twice, first in line %d", first)
		default:
			d.decode(value, field, at)
		}
		seen[name.Value] = name.Line
	}
}

func kindWord(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "set of keys"
	case yaml.SequenceNode:
		return "list"
	}
	return "single value"
}

// isScalar reports whether a struct type is written as one value, such as an address.
func isScalar(v reflect.Value) bool {
	switch v.Addr().Interface().(type) {
	case interface{ UnmarshalText([]byte) error }, yaml.Unmarshaler:
		return true
	}
	return false
}

func fieldByKey(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() && v.Type().Field(i).Tag.Get("yaml") == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// knownKeys names the keys that exist here.
func knownKeys(t reflect.Type) string {
	var keys []string
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			keys = append(keys, f.Tag.Get("yaml"))
		}
	}
	return "; known here: " + strings.Join(keys, ", ")
}

// applyDefaults calls setDefaults on the struct that p points to and on all structs within it.
func applyDefaults(p any) {
	if d, ok := p.(interface{ setDefaults() }); ok {
		d.setDefaults()
	}
	v := reflect.ValueOf(p).Elem()
	if v.Kind() != reflect.Struct || isScalar(v) {
		return
	}
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Struct && f.CanSet() {
			applyDefaults(f.Addr().Interface())
		}
	}
}
