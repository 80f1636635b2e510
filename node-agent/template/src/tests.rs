use super::*;
use crate::data::Fetched;
use proptest::prelude::*;
use std::cell::RefCell;

#[derive(Default)]
struct Store {
    known: BTreeMap<Dependency, Fetched>,
    asked: RefCell<Vec<Dependency>>,
}

impl Data for Store {
    fn fetch(&self, wanted: &Dependency) -> Fetched {
        self.asked.borrow_mut().push(wanted.clone());
        self.known.get(wanted).cloned().unwrap_or(Fetched::Pending)
    }
}

impl Store {
    fn with(known: impl IntoIterator<Item = (Dependency, Fetched)>) -> Self {
        Self { known: known.into_iter().collect(), ..Self::default() }
    }
}

fn env() -> BTreeMap<String, String> {
    [("NOMAD_PORT_http", "8080"), ("NAME", "web")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn render(text: &str, store: &Store) -> Outcome {
    let env = env();
    let inputs = Inputs {
        env: &env,
        now: model::Timestamp(1_700_000_000_123_456_789),
        data: store,
        error_on_missing_key: false,
    };
    match Template::parse(text, Delimiters::default()) {
        Ok(template) => template.render(&inputs).outcome,
        Err(ParseError { line, reason }) => Outcome::Failed(RenderError { line, reason }),
    }
}

fn check_with(store: &Store, text: &str, expect: &str) {
    match render(text, store) {
        Outcome::Text(found) => assert_eq!(String::from_utf8_lossy(&found), expect, "{text}"),
        other => panic!("{text}: {other:?}"),
    }
}

fn check(text: &str, expect: &str) {
    check_with(&Store::default(), text, expect);
}

fn check_fails(text: &str, reason: &str) {
    match render(text, &Store::default()) {
        Outcome::Failed(error) => assert!(error.to_string().contains(reason), "{text}: {error}"),
        other => panic!("{text}: {other:?}"),
    }
}

/// Whole numbers stay whole, as in the Go program that made the answers.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap()), Value::Int)
        }
        serde_json::Value::String(text) => Value::text(text),
        serde_json::Value::Array(items) => Value::list(items.iter().map(value).collect()).unwrap(),
        serde_json::Value::Object(entries) => {
            Value::map(entries.iter().map(|(key, item)| (key.clone(), value(item))).collect()).unwrap()
        }
    }
}

#[test]
fn templates_come_out_as_go_renders_them() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("../tests/golden/cases.json")).unwrap();
    let answers: Vec<Option<String>> = serde_json::from_str(include_str!("../tests/golden/expected.json")).unwrap();
    let (dot, env, store) = (value(&cases["data"]), env(), Store::default());
    let inputs = Inputs { env: &env, now: model::Timestamp(0), data: &store, error_on_missing_key: false };
    let mut wrong = Vec::new();
    for (text, expect) in cases["templates"].as_array().unwrap().iter().zip(&answers) {
        let text = text.as_str().unwrap();
        let found =
            Template::parse(text, Delimiters::default()).map_err(|error| error.to_string()).and_then(|template| {
                match template.render_with(&inputs, dot.clone()).outcome {
                    Outcome::Text(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
                    other => Err(format!("{other:?}")),
                }
            });
        let agrees = match (&found, expect) {
            (Ok(found), Some(expect)) => found == expect,
            (Err(_), None) => true,
            _ => false,
        };
        if !agrees {
            wrong.push(format!("{text:?}\n   here {found:?}\n     Go {expect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), answers.len(), wrong.join("\n"));
}

fn service(name: &str, id: &str, tags: &[&str]) -> ServiceEntry {
    ServiceEntry {
        id: id.to_owned(),
        name: name.to_owned(),
        address: format!("10.0.0.{id}"),
        port: 8080,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        meta: BTreeMap::from([("version".to_owned(), "7".to_owned())]),
        status: "passing".to_owned(),
        node: "n1".to_owned(),
        node_id: "node-1".to_owned(),
        ..ServiceEntry::default()
    }
}

fn store() -> Store {
    let named = |name: &str, any| Dependency::Service { name: name.to_owned(), any };
    let keys = |pairs: &[(&str, &str)]| {
        let key = |(path, value): &(&str, &str)| KeyValue { path: (*path).to_owned(), value: (*value).to_owned() };
        Fetched::Found(Content::Keys(pairs.iter().map(key).collect()))
    };
    let web = vec![service("web", "1", &["blue", "v1"]), service("web", "2", &["green"])];
    Store::with([
        (named("web", false), Fetched::Found(Content::Services(web.clone()))),
        (named("web", true), Fetched::Found(Content::Services(web))),
        (named("none", false), Fetched::Absent),
        (
            Dependency::Services,
            Fetched::Found(Content::ServiceNames([("web".to_owned(), vec!["blue".to_owned()])].into())),
        ),
        (Dependency::Key("a/b".to_owned()), keys(&[("a/b", "value")])),
        (Dependency::Key("gone".to_owned()), Fetched::Absent),
        (Dependency::KeyPrefix("a".to_owned()), keys(&[("a/b", "1"), ("a/c/d", "2"), ("a/c/e", "3"), ("ab", "4")])),
        (
            Dependency::Variable("nomad/jobs/web".to_owned()),
            Fetched::Found(Content::Items(
                [("user".to_owned(), "u<".to_owned()), ("pass".to_owned(), "p".to_owned())].into(),
            )),
        ),
        (Dependency::Variable("gone".to_owned()), Fetched::Absent),
        (Dependency::VariablePrefix(String::new()), Fetched::Found(Content::Paths(vec!["nomad/jobs/web".to_owned()]))),
        (Dependency::File("local/x".to_owned()), Fetched::Found(Content::Bytes(b"from a file".to_vec()))),
        (
            Dependency::File("../etc/passwd".to_owned()),
            Fetched::Refused("it is outside of the task's directory".to_owned()),
        ),
        (
            Dependency::Node(None),
            Fetched::Found(Content::Nodes(vec![NodeEntry { name: "n1".to_owned(), ..NodeEntry::default() }])),
        ),
    ])
}

#[test]
fn services_keys_variables_and_files_are_shown_as_consul_template_does() {
    let store = store();
    let check = |text: &str, expect: &str| check_with(&store, text, expect);
    check(
        "{{range service \"web\"}}{{.Address}}:{{.Port}} {{.ServiceMeta.version}}{{.ServiceMeta.none}};{{end}}",
        "10.0.0.1:8080 7;10.0.0.2:8080 7;",
    );
    check("{{range service \"green.web@dc1\"}}{{.ID}}{{end}}", "2");
    check("{{range service \"web|any\"}}x{{end}}", "xx");
    check("{{range service \"web\" \"any\"}}{{.Status}} {{end}}", "passing passing ");
    check("{{len (nomadService \"web\")}}{{len (nomadService 1 \"me\" \"web\")}}", "21");
    check("{{with nomadService \"none\"}}yes{{else}}no{{end}}", "no");
    check("{{range services}}{{.Name}}{{.Tags}}{{end}}", "web[blue]");
    check("{{range $tag, $found := service \"web\" | byTag}}{{$tag}}={{len $found}} {{end}}", "blue=1 green=1 v1=1 ");
    check("{{key \"a/b\"}} {{keyExists \"gone\"}} {{keyOrDefault \"gone\" \"d\"}}", "value false d");
    check("{{range ls \"a\"}}{{.Key}}={{.Value}} {{end}}", "b=1 ");
    check("{{range tree \"a\"}}{{.Key}}={{.Value}} {{end}}", "b=1 c/d=2 c/e=3 ");
    check("{{with tree \"a\" | explode}}{{.c.d}}{{.b}}{{end}}", "21");
    check(
        "{{range $k, $pairs := tree \"a\" | byKey}}{{$k}}:{{range $n, $p := $pairs}}{{$n}}{{$p.Value}}{{end}}{{end}}",
        "c:d2e3",
    );
    check("{{with nomadVar \"nomad/jobs/web\"}}{{.user}}:{{.pass.Value}}{{end}}", "u<:p");
    check(
        "{{with nomadVar \"nomad/jobs/web\"}}{{if eq .pass \"p\"}}{{. | toJSON}}{{end}}{{end}}",
        "{\"pass\":\"p\",\"user\":\"u\\u003c\"}",
    );
    check(
        "{{nomadVarExists \"gone\"}} {{range nomadVarList}}{{.Path}} {{.}}{{end}}",
        "false nomad/jobs/web nomad/jobs/web",
    );
    check("{{file \"local/x\"}} {{with node}}{{.Node.Node}}{{end}}", "from a file n1");
    check("{{env \"NOMAD_PORT_http\"}} {{env \"NONE\"}}{{envOrDefault \"NONE\" \"d\"}}", "8080 d");
}

#[test]
fn what_is_not_there_yet_is_waited_for_all_at_once() {
    let text =
        "{{key \"x\"}}{{key \"gone\"}}{{with nomadVar \"gone\"}}{{.a.b.c}}{{end}}{{(key \"x\" | parseJSON).deep.er}}";
    let pending = |paths: &[Dependency]| Outcome::Pending(paths.iter().cloned().collect());
    let wanted =
        [Dependency::Key("x".to_owned()), Dependency::Key("gone".to_owned()), Dependency::Variable("gone".to_owned())];
    assert_eq!(render(text, &store()), pending(&wanted));
    // It fails only for want of what it waits for.
    assert_eq!(render("{{index (key \"x\" | split \",\") 3}}", &store()), pending(&wanted[..1]));
}

#[test]
fn everything_asked_for_is_a_dependency() {
    let (env, store) = (env(), store());
    let inputs = Inputs { env: &env, now: model::Timestamp(0), data: &store, error_on_missing_key: false };
    let text = "{{keyExists \"gone\"}}{{range service \"web\"}}{{end}}{{env \"NAME\"}}";
    let rendering = Template::parse(text, Delimiters::default()).unwrap().render(&inputs);
    let expect = [Dependency::Key("gone".to_owned()), Dependency::Service { name: "web".to_owned(), any: false }];
    assert_eq!(rendering.dependencies, expect.into());
}

#[test]
fn helpers_compute_what_consul_template_and_sprig_compute() {
    check(
        "{{5 | subtract 2}} {{2 | add 3}} {{10 | divide 4}} {{10.0 | divide 4}} {{7 | modulo 4}} {{3 | multiply 2}}",
        "3 5 2 2.5 3 6",
    );
    check("{{minimum 1 2}} {{maximum 1 2.5}}", "1 2.5");
    check("{{range loop 3}}{{.}}{{end}}{{range loop 2 4}}{{.}}{{end}}", "01223");
    check(
        "{{\"a,b\" | split \",\" | join \"-\"}} {{\"ab\" | contains \"b\"}} {{list 1 2 | contains 2}}",
        "a-b true true",
    );
    check("{{\"Hello\" | toLower | replaceAll \"l\" \"L\" | trimSuffix \"o\"}}{{\"a b\" | toTitle}}", "heLLA B");
    check(
        "{{\"foo-12\" | regexReplaceAll \"([a-z]+)-([0-9]+)\" \"$2-$1\"}} {{\"foo\" | regexMatch \"^f\"}}",
        "12-foo true",
    );
    check("{{\"a\\n\\nb\" | indent 2}}", "  a\n\n  b");
    check(
        "{{\"hi\" | base64Encode}} {{\"aGk=\" | base64Decode}} {{sha256Hex \"\"}}",
        "aGk= hi e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    );
    check(
        "{{md5sum \"\"}} {{hmacSHA256Hex \"m\" \"k\"}}",
        "d41d8cd98f00b204e9800998ecf8427e b60090e3052297aeb5a080889ce2fc4bca957e756faeb4df7d31800ca1e771ec",
    );
    check(
        "{{with parseJSON `{\"a\":[1,2.5,{\"b\":null}],\"c\":\"d\"}`}}{{.c}}{{index .a 1}}{{toJSON .}}{{end}}",
        "d2.5{\"a\":[1,2.5,{\"b\":null}],\"c\":\"d\"}",
    );
    check(
        "{{parseJSON `{\"a\":{\"b\":[]},\"x\":[1]}` | toJSONPretty}}",
        "{\n  \"a\": {\n    \"b\": []\n  },\n  \"x\": [\n    1\n  ]\n}",
    );
    check(
        "{{parseJSON `{\"a\":{\"b\":\"true\",\"l\":[1,{\"k\":\"v w\"}]},\"n\":2}` | toYAML}}",
        "a:\n  b: \"true\"\n  l:\n    - 1\n    - k: v w\n\"n\": 2",
    );
    check(
        "{{parseJSON `{\"a\":{\"b\":\"x\"},\"n\":2,\"l\":[1,2]}` | toTOML}}",
        "l = [1.0, 2.0]\nn = 2.0\n\n[a]\nb = \"x\"",
    );
    check(
        "{{timestamp}} {{timestamp \"unix\"}} {{timestamp \"Mon Jan _2 03:04:05.000 PM 2006\"}}",
        "2023-11-14T22:13:20Z 1700000000 Tue Nov 14 10:13:20.123 PM 2023",
    );
    check(
        "{{scratch.Set \"a\" 1}}{{scratch.MapSet \"m\" \"k\" \"v\"}}{{scratch.Get \"a\"}}{{scratch.Key \"b\"}}{{scratch.MapValues \"m\"}}",
        "1false[v]",
    );
    check(
        "{{\"\" | default \"d\"}} {{quote \"a\"}} {{upper \"x\" | repeat 3}} {{list \"b\" \"a\" | sortAlpha}}",
        "d \"a\" XXX [a b]",
    );
    check(
        "{{sprig_trim \" a \"}}{{\"abc\" | trunc 2}}{{dict \"k\" 1 | keys}}{{ternary \"y\" \"n\" true}}{{\"a\" | nindent 2}}",
        "aab[k]y\n  a",
    );
    check(
        "{{define \"t\"}}<{{.}}>{{end}}{{executeTemplate \"t\" 5}}{{parseBool \"true\"}}{{parseInt \"7\" | add 1}}",
        "<5>true8",
    );
}

#[test]
fn other_delimiters_open_actions() {
    let delimiters = Delimiters { left: "[[", right: "]]" };
    let (env, store) = (env(), Store::default());
    let inputs = Inputs { env: &env, now: model::Timestamp(0), data: &store, error_on_missing_key: false };
    let template = Template::parse("{{x}} [[ env \"NAME\" -]]  y", delimiters).unwrap();
    assert_eq!(template.render(&inputs).outcome, Outcome::Text(b"{{x}} weby".to_vec()));
}

#[test]
fn a_missing_key_is_an_error_where_that_is_asked_for() {
    let (env, store) = (env(), Store::default());
    let render = |error_on_missing_key| {
        let inputs = Inputs { env: &env, now: model::Timestamp(0), data: &store, error_on_missing_key };
        Template::parse("{{(parseJSON `{}`).x}}", Delimiters::default()).unwrap().render(&inputs).outcome
    };
    assert_eq!(render(false), Outcome::Text(b"<no value>".to_vec()));
    assert!(matches!(render(true), Outcome::Failed(error) if error.reason.contains("no entry for key \"x\"")));
}

#[test]
fn mistakes_are_told_with_their_line() {
    check_fails("a\n{{ if }}", "line 2: if is empty");
    check_fails("\n\n{{secret \"x\"}}", "line 3: secret: there is no secret store");
    check_fails("{{nope 1}}", "function \"nope\" is not defined");
    check_fails("a\n{{divide 0 1}}", "line 2: divide: division by zero");
    check_fails("{{if true}}", "add its `end`");
    check_fails("{{parseJSON \"{\"}}", "not JSON");
    check_fails("{{env}}", "takes 1 arguments, not 0");
    check_fails("{{\"x\" | regexMatch \"(\"}}", "not a regular expression");
    assert!(
        matches!(render("{{file \"../etc/passwd\"}}", &store()), Outcome::Failed(error) if error.reason.contains("outside"))
    );
}

#[test]
fn hostile_templates_end_with_a_reason() {
    check_fails("{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}", "deep");
    check_fails("{{define \"a\"}}{{if true}}{{executeTemplate \"a\"}}{{end}}{{end}}{{template \"a\"}}", "deep");
    check_fails(&"{{if true}}".repeat(10_000), "deep");
    check_fails(&format!("{{{{{}1{}}}}}", "(".repeat(10_000), ")".repeat(10_000)), "deep");
    check_fails(&"{{if 0}}{{else ".repeat(1_000), "unexpected");
    check_fails(&format!("{{{{if 0}}}}{}", "{{else if 0}}".repeat(1_000)), "deep");
    check_fails("{{range 1000000000000}}{{end}}", "steps");
    check_fails("{{range 100000}}{{range 100000}}x{{end}}{{end}}", "than");
    check_fails("{{range loop 1000000}}{{end}}", "turns");
    check_fails("{{$x := \"aaaaaaaaaaaaaaaa\"}}{{range 60}}{{$x = printf \"%s%s\" $x $x}}{{end}}", "bytes");
    check_fails("{{$x := list}}{{range 1000}}{{$x = list $x $x}}{{end}}{{$x}}", "deep");
    check_fails("{{scratch.Set \"a\" scratch}}", "scratch");
    check_fails("{{repeat 1000000000 \"x\"}}", "bytes");
    check_fails("{{printf \"%1000000d%1000000d%1000000d%1000000d%1000000d\" 1 2 3 4 5}}", "bytes");
    check_fails("{{\"a\" | indent 1000000000}}", "bytes");
    check_fails("{{repeat 1000000 \"a\" | replaceAll \"\" (repeat 1000 \"b\")}}", "bytes");
    check_fails("{{repeat 1000000 \"a\" | regexReplaceAll \".\" \"$0$0$0$0$0$0$0$0$0$0$0$0\"}}", "bytes");
    check_fails("{{\"x\" | regexMatch \"((a{100}){100}){100}\"}}", "not a regular expression");
    check_fails(&format!("{{{{parseJSON `{}`}}}}", "[".repeat(100_000)), "not JSON");
    check_fails(&"x".repeat(SOURCE_BYTES_MAX + 1), "larger");
    check_fails("{{range 100}}{{repeat 100000 \"x\"}}{{end}}", "larger than");
    check_fails("{{divide -1 -9223372036854775808}}", "64 bits");
    check("{{modulo -1 -9223372036854775808}}{{index (list 1) 0 | untilStep 1 5 | len}}", "04");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}") {
        render(&text, &store());
    }

    #[test]
    fn no_mixture_of_real_pieces_makes_it_panic(pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..24)) {
        let text: String = pieces.concat();
        render(&text, &store());
        render(&format!("{{{{{}}}}}", pieces.join(" ")), &store());
    }
}

const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{{- ",
    " -}}",
    "{{end}}",
    "{{else}}",
    "if ",
    "range ",
    "with ",
    "template ",
    "define ",
    "block ",
    "\"a\"",
    "break",
    "continue",
    "$x",
    ":=",
    "=",
    "$",
    ".",
    ".a",
    ".Key",
    "(",
    ")",
    "|",
    " ",
    ",",
    "1",
    "-1",
    "1.5",
    "0x7f",
    "'a'",
    "`r`",
    "nil",
    "true",
    "printf ",
    "\"%v%5.2f%q%x\"",
    "index ",
    "slice ",
    "len ",
    "eq ",
    "lt ",
    "and ",
    "or ",
    "not ",
    "service ",
    "\"web\"",
    "key ",
    "tree ",
    "explode ",
    "byKey ",
    "byTag ",
    "nomadVar ",
    "parseJSON ",
    "`{\"a\":[1]}`",
    "toJSON ",
    "toYAML ",
    "toTOML ",
    "toJSONPretty ",
    "split ",
    "join ",
    "indent ",
    "regexReplaceAll ",
    "replaceAll ",
    "loop ",
    "add ",
    "divide ",
    "modulo ",
    "scratch.Set ",
    "scratch.Get ",
    "timestamp ",
    "substr ",
    "trunc ",
    "until ",
    "untilStep ",
    "dict ",
    "list ",
    "trimSuffix ",
    "html ",
    "js ",
    "urlquery ",
    "9223372036854775807",
    "\"\"",
    "é",
    "/*",
    "*/",
];
