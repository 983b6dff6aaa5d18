//! The template room against transformers (tests/fixtures/chats.json), and against templates that mean harm.

use super::*;

fn compile(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::compile(source, Map::new(), "test")
}

fn render(source: &str) -> Result<String> {
    let messages = [Message { role: "user".into(), content: "hi".into() }];
    Ok(compile(source)?.render(&messages, false, &Map::new())?.text)
}

fn id_of(source: &str) -> &'static str {
    render(source).unwrap_err().id()
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What the file says, against what we say.
fn check_case(case: &Value, rendered: Result<Rendered>) -> std::result::Result<(), String> {
    match (case.get("rendered").and_then(Value::as_str), rendered) {
        (Some(expected), Ok(found)) if expected == found.text => {
            let Some(expected) = case.get("generation_spans") else { return Ok(()) };
            let characters = |bytes: usize| found.text[..bytes].chars().count();
            let spans = found.assistant.iter().flatten().map(|span| [characters(span.start), characters(span.end)]);
            let spans = serde_json::json!(spans.collect::<Vec<_>>());
            if *expected == spans { Ok(()) } else { Err(format!("spans {expected} became {spans}")) }
        }
        (Some(expected), Ok(found)) => Err(format!("{expected:?}\n  became {:?}", found.text)),
        (Some(_), Err(error)) => Err(error.to_string()),
        (None, found) => {
            let (class, message) = (&case["error"]["class"], case["error"]["message"].as_str().unwrap());
            let is_right = |error: &Error| match class.as_str() {
                Some("TemplateError") => error.id() == "template-raised" && error.to_string().contains(message),
                _ => error.id() == "template-failed",
            };
            if found.as_ref().is_err_and(is_right) {
                Ok(())
            } else {
                Err(format!("{class} {message} became {found:?}"))
            }
        }
    }
}

#[test]
fn every_case_of_transformers_agrees() {
    let text = std::fs::read_to_string(fixtures().join("chats.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["now"], "2026-01-05T09:07:03");
    let mut wrong = Vec::new();
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let special = case["special_tokens"].as_object().unwrap().clone();
        let template = ChatTemplate::compile(file["templates"][name].as_str().unwrap(), special, name).unwrap();
        template.set_now(1_767_604_023);
        let mut variables = case.get("variables").and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(tools) = case["tools"].as_str() {
            variables.insert("tools".into(), file["tools"][tools].clone());
        }
        let messages = file["messages"][case["messages"].as_str().unwrap()].as_array().unwrap();
        let is_prompt = case["add_generation_prompt"].as_bool().unwrap();
        let outcome = check_case(case, template.render_values(messages, is_prompt, &variables));
        wrong.extend(outcome.err().map(|what| format!("{name}, {}: {what}", case["messages"])));
    }
    assert!(cases.len() > 200 && wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_model_of_transformers_agrees() {
    let text = std::fs::read_to_string(fixtures().join("chats.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let cases = file["model_cases"].as_array().unwrap();
    for case in cases {
        let dir = fixtures().join("models").join(case["model"].as_str().unwrap());
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let template = ChatTemplate::load(&dir, &tokenizer).unwrap().unwrap();
        let messages = file["messages"][case["messages"].as_str().unwrap()].as_array().unwrap();
        let rendered = template.render_values(messages, false, &Map::new());
        check_case(case, rendered.clone()).unwrap();
        let Ok(rendered) = rendered else { continue };
        let encoding = tokenizer.encode(&rendered.text, false).unwrap();
        assert_eq!(serde_json::json!(encoding.ids), case["input_ids"], "{}", case["model"]);
        if let Some(masks) = case.get("assistant_masks") {
            let spans = rendered.assistant.unwrap();
            let inside = |start: usize| i32::from(spans.iter().any(|span| span.contains(&start)));
            let found: Vec<_> = encoding.offsets.iter().map(|(start, _)| inside(*start)).collect();
            assert_eq!(serde_json::json!(found), *masks, "{}", case["model"]);
        }
    }
    assert!(cases.len() > 30);
}

#[test]
fn python_methods_and_json_options() {
    assert_eq!(render("{{ 'a-b-c'.partition('-') | join('|') }}").unwrap(), "a|-|b-c");
    assert_eq!(render("{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ 'abc'.index('c') }}").unwrap(), "b2");
    assert_eq!(render("{{ [1, {'a': 'é\\n'}] | tojson(ensure_ascii=true) }}").unwrap(), "[1, {\"a\": \"\\u00e9\\n\"}]");
    assert_eq!(
        render("{{ {'b': [], 'a': 1.0} | tojson(indent=1, sort_keys=true) }}").unwrap(),
        "{\n \"a\": 1.0,\n \"b\": []\n}"
    );
    assert_eq!(id_of("{{ nothing | tojson }}"), "template-failed");
    assert_eq!(id_of("{{ 'a'.frobnicate() }}"), "template-failed");
    assert_eq!(id_of("{{ raise_exception('no') }}"), "template-raised");
    assert_eq!(id_of("{% include 'other' %}"), "template-failed");
}

#[test]
fn hostile_templates_end_in_an_error() {
    let double = "{% set ns = namespace(x=VALUE) %}{% for i in range(100) %}{% set ns.x = STEP %}{% endfor %}";
    let doubling = |value: &str, step: &str| double.replace("VALUE", value).replace("STEP", step);
    assert_eq!(
        id_of("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
        "template-too-much-work"
    );
    assert_eq!(id_of(&doubling("'ab'", "ns.x ~ ns.x")), "template-too-much-work");
    assert_eq!(id_of(&doubling("[1]", "[ns.x, ns.x]")), "template-failed");
    assert_eq!(id_of(&doubling("[1]", "[ns.x]")), "template-failed");
    assert_eq!(id_of("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}"), "template-failed");
    assert_eq!(id_of("{% set ns = namespace() %}{% set a, ns.x = 1, [ns] %}{{ ns }}"), "template-failed");
    assert_eq!(id_of("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"), "template-failed");
    assert_eq!(id_of("{{ ('a' * 10000000) ~ ('a' * 100000000) }}"), "template-too-much-work");
    assert_eq!(id_of("{{ 'a' * 18000000 }}"), "template-output-too-large");
    assert_eq!(id_of("{{ range(1000000000) | list }}"), "template-failed");
    let deep = format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000));
    assert_eq!(render(&deep).unwrap(), "");
    assert_eq!(id_of(&format!("{{{{ {}1{} }}}}", "(".repeat(9000), ")".repeat(9000))), "template-invalid");
    assert_eq!(id_of(&" ".repeat(SOURCE_BYTES_MAX + 1)), "template-invalid");
    assert_eq!(id_of("{% if %}"), "template-invalid");
    let mut output = Output { bytes: Vec::new(), pieces: 0, is_full: false };
    assert!(std::io::Write::write_all(&mut output, &vec![0; OUTPUT_BYTES_MAX + 1]).is_err() && output.is_full);
}

#[test]
fn a_template_that_hangs_is_given_up() {
    let (_sender, receiver) = sync_channel::<Result<()>>(1);
    assert_eq!(wait(&receiver, Duration::from_millis(1)).unwrap_err().id(), "template-timeout");
}

#[test]
fn marks_do_not_collide_with_the_text() {
    let template =
        compile("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}").unwrap();
    let content = "\u{FDD0}a\u{FDD1}";
    let messages = [Message { role: "user".into(), content: content.into() }];
    let rendered = template.render(&messages, false, &Map::new()).unwrap();
    assert_eq!(rendered.text, format!("{content}|"));
    assert!(rendered.assistant.unwrap().into_iter().eq(std::iter::once(0..content.len())));
}

#[test]
fn templates_are_found_where_transformers_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::copy(fixtures().join("models/gpt2_tied/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let load = || -> Result<Option<String>> {
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let template = ChatTemplate::load(dir.path(), &tokenizer)?;
        template.map(|template| Ok(template.render(&[], false, &Map::new())?.text)).transpose()
    };
    assert_eq!(load().unwrap(), None);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": "one{{ eos_token }}", "eos_token": {"content": "<|im_end|>"}}"#,
    );
    assert_eq!(load().unwrap().unwrap(), "one<|im_end|>");
    let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "two"}]}"#;
    write("tokenizer_config.json", list);
    assert_eq!(load().unwrap().unwrap(), "two");
    write("tokenizer_config.json", &list.replace("default", "other"));
    assert_eq!(load().unwrap_err().id(), "template-without-default");
    write("chat_template.jinja", "three\r\n\n");
    assert_eq!(load().unwrap().unwrap(), "three\n");
    write("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert_eq!(load().unwrap().unwrap(), "three\n");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(load().unwrap_err().id(), "template-invalid");
}
