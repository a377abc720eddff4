"""The subset of Go templates for --format."""

from __future__ import annotations

import pytest

from vmm.model.errors import UsageError
from vmm.model.template import Template

VALUE = {
    "State": {"Status": "running", "Pid": 7, "Paused": False},
    "Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "90/tcp": None},
    "Names": ["a", "b"],
    "Id": "abcdef",
    "None": None,
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("{{.State.Status}}", "running"),
        ("{{.State.Paused}} {{.State.Pid}} {{.None}}", "false 7 <no value>"),
        ("{{.Names}} {{.State}}", "[a b] map[Paused:false Pid:7 Status:running]"),
        ("{{json .Ports}}", '{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"90/tcp":null}'),
        ("{{range $p, $c := .Ports}}{{$p}}={{if $c}}{{(index $c 0).HostPort}}{{end}};{{end}}",
         "80/tcp=8080;90/tcp=;"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ('{{join .Names ", " | upper}}', "A, B"),
        ("{{range .Names}}<{{.}}>{{else}}none{{end}}", "<a><b>"),
        ("{{range $i, $n := .Names}}{{$i}}{{$n}}{{end}}", "0a1b"),
        ("{{range .None}}x{{else}}none{{end}}", "none"),
        ("{{with .State}}{{.Pid}}{{$.Id}}{{end}}", "7abcdef"),
        ('{{if eq .Id "x"}}1{{else if .State.Paused}}2{{else}}3{{end}}', "3"),
        ('{{if and .Id (not .State.Paused)}}yes{{end}}', "yes"),
        ('{{printf "%-8s|%5d|%q" .Id 3 "x"}}', 'abcdef  |    3|"x"'),
        ("{{$x := .Id}}{{slice $x 0 3}}{{len .Names}}", "abc2"),
        ("a {{- .Id -}} b", "aabcdefb"),
        ("{{/* nothing */}}{{truncate .Id 2}}", "ab"),
        ('{{"a\\tb"}}{{`raw\\t`}}', "a\tbraw\\t"),
        ('{{println "x"}}', "x\n"),
    ],
)  # fmt: skip
def test_rendered(source: str, expected: str) -> None:
    assert Template(source).render(VALUE) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{.Foo}}", "no field Foo (in .Foo); there are: Id, Names, None, Ports, State"),
        ("{{", "unclosed action"),
        ("{{if .Id}}", "unexpected EOF: {{end}} is missing"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{foo .Id}}", 'function "foo" not defined'),
        ("{{.Id.x}}", "can't evaluate field x of abcdef (in .Id.x)"),
        ("{{index .Names 9}}", "error calling index: index out of range: 9"),
        ("{{}}", "missing value for command"),
        ("{{$z}}", 'undefined variable "$z"'),
        ("{{.Id .Id}}", "can't give argument to non-function .Id"),
        ("{{" + "(" * 100 + ".Id" + ")" * 100 + "}}", "nested deeper than 50"),
        ("{{if .Id}}" * 100, "nested deeper than 50"),
        ("x" * 70000, "the template is too long"),
    ],
)
def test_refused(source: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(source).render(VALUE)
    assert caught.value.message == f"template parsing error: {message}"
