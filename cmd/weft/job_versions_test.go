package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/registry"
)

func TestVersionViews(t *testing.T) {
	v := versionInfo{registry.Version{Job: "payments", Number: 3, Spec: "version: weft/v1\njob: payments\n", Message: "refunds\x1b[31m link", Author: "ann", Repeats: 2,
		Created: time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC), Engine: &registry.Engine{SHA256: strings.Repeat("ab", 32), Bytes: 55447714, OS: "linux", Arch: "amd64"},
		Assets: map[string]registry.AssetRef{"bill.avsc": {SHA256: "12", Bytes: 812}}}, "c0ffee", []string{"serves"}}
	plain := versionInfo{Version: registry.Version{Job: "payments", Number: 1}}
	var list, one strings.Builder
	if err := printVersions(&list, []versionInfo{plain, v}); err != nil {
		t.Fatal(err)
	}
	if err := printVersion(&one, &v); err != nil {
		t.Fatal(err)
	}
	for where, c := range map[string]struct {
		got  string
		want []string
	}{
		"list": {list.String(), []string{"3        2026-11-02 03:04:05  ann  abababababab  serves  refunds?[31m link\n", "any           -       \n"}},
		"one": {one.String(), []string{"version     3 of payments\n", "repeats     version 2, computed anew\n", "checksum    c0ffee\n", ", linux/amd64, 55,447,714 bytes\n",
			"file        bill.avsc, 12, 812 bytes\n", "\nversion: weft/v1\njob: payments\n"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.got, want) {
				t.Errorf("%s has no %q:\n%s", where, want, c.got)
			}
		}
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"version":3`, `"checksum":"c0ffee"`, `"parts":["serves"]`, `"engine":{"sha256":"abab`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s has no %s", text, want)
		}
	}
}
