package static

import (
	"net/netip"
	"reflect"

	"github.com/vxlane/vxlane/encap"
)

// Field is one key of the configuration file, for the reference documentation.
type Field struct {
	Key, Type, Default, Doc string
}

// Reference returns every key of the configuration file, in the order of the file.
func Reference() []Field { return describe(reflect.TypeFor[Config](), "") }

func describe(t reflect.Type, prefix string) (fields []Field) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		key := prefix + f.Tag.Get("yaml")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if doc := f.Tag.Get("doc"); doc != "" {
			fields = append(fields, Field{key, typeName(f.Type), f.Tag.Get("default"), doc})
		}
		if inner.Kind() == reflect.Struct && !isScalar(reflect.New(inner).Elem()) {
			if inner != f.Type {
				key += "[]"
			}
			fields = append(fields, describe(inner, key+".")...)
		}
	}
	return fields
}

// typeName says what is written for a value of type t.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "address"
	case reflect.TypeFor[netip.Prefix](), reflect.TypeFor[Prefix]():
		return "prefix"
	case reflect.TypeFor[Endpoint]():
		return "address or address:port"
	case reflect.TypeFor[encap.MAC]():
		return "MAC"
	case reflect.TypeFor[PortRange]():
		return "LOW-HIGH"
	case reflect.TypeFor[Duration]():
		return "duration"
	case reflect.TypeFor[TTL]():
		return "number, inherit or auto"
	case reflect.TypeFor[TOS]():
		return "number or inherit"
	case reflect.TypeFor[Check]():
		return "true, count or false"
	case reflect.TypeFor[Suppress]():
		return "true, false or drop"
	case reflect.TypeFor[Flood]():
		return "word or list of names"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct && !isScalar(reflect.New(t.Elem()).Elem()) {
			return "list"
		}
		return "list of prefixes" // the only other kind of list there is
	case reflect.String:
		return "text"
	}
	return "number"
}
