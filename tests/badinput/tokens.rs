//! Tokenizers whose parts do not fit together, and chat templates that loop, recurse, grow, reach for files, or render
//! what cannot be learnt from.

use serde_json::{Value, json};

use super::{Case, case, generate, ppo, score, sft};
use crate::support::{Room, conversations};

const TOKENIZER: &str = "model/tokenizer.json";

/// tokenizer.json with a change to its object.
fn tokenizer(change: fn(&mut serde_json::Map<String, Value>)) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        room.edit(TOKENIZER, change);
        sft("")
    }
}

/// tokenizer.json as these bytes.
fn bytes<T: AsRef<[u8]> + Send + Sync>(bytes: T) -> impl Fn(&Room) -> String + Send + Sync + use<T> {
    move |room| {
        room.write(TOKENIZER, &bytes);
        score("")
    }
}

/// tokenizer_config.json with `key` set to `value`.
fn config(key: &'static str, value: Value) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        room.edit("model/tokenizer_config.json", |file| drop(file.insert(key.to_owned(), value.clone())));
        generate("")
    }
}

/// Another file of the tokenizer, as this text.
fn file<T: AsRef<[u8]> + Send + Sync>(name: &'static str, text: T) -> impl Fn(&Room) -> String + Send + Sync + use<T> {
    move |room| {
        room.write(&format!("model/{name}"), &text);
        sft("")
    }
}

/// A chat template, and conversations to render.
fn template(source: impl Into<String>) -> impl Fn(&Room) -> String + Send + Sync {
    let source = source.into();
    move |room| {
        room.write("model/chat_template.jinja", &source);
        room.rows("data.jsonl", &conversations(4));
        sft("")
    }
}

pub(super) fn tokenizers_that_do_not_parse() -> Vec<Case> {
    let id = "tokenizer-invalid";
    Vec::from([
        case("nothing", bytes(""), 3, id),
        case("a list", bytes("[]"), 3, id),
        case("an empty object", bytes("{}"), 3, id),
        case("bytes", bytes(b"\xff\xfe\x00"), 3, id),
        case("a SentencePiece file", bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"), 3, id),
        case("nesting", bytes("[".repeat(100_000)), 3, id),
        case(
            "nesting in the model",
            bytes(format!("{{\"version\": \"1.0\", \"model\": {}", "{\"a\":".repeat(100_000))),
            3,
            id,
        ),
        case(
            "a million zeros",
            bytes(format!("{{\"version\": \"1.0\", \"x\": [{}0]}}", "0,".repeat(1_000_000))),
            3,
            id,
        ),
        case("another version", tokenizer(|file| drop(file.insert("version".into(), json!("9.9")))), 3, id),
        case("no model", tokenizer(|file| drop(file.remove("model"))), 3, id),
        case("an unknown model", tokenizer(|file| file["model"]["type"] = json!("Magic")), 3, id),
        case("a vocabulary that is a list", tokenizer(|file| file["model"]["vocab"] = json!(["a"])), 3, id),
        case("an id that is a text", tokenizer(|file| file["model"]["vocab"]["a"] = json!("1")), 3, id),
        case("an id below 0", tokenizer(|file| file["model"]["vocab"]["a"] = json!(-1)), 3, id),
        case("an id beyond 32 bits", tokenizer(|file| file["model"]["vocab"]["a"] = json!(1_u64 << 32)), 3, id),
        case("an id beyond 31 bits", tokenizer(|file| file["model"]["vocab"]["a"] = json!(u32::MAX)), 3, id),
        case("a merge of unknown tokens", tokenizer(|file| file["model"]["merges"] = json!(["qq zz"])), 3, id),
        case("a merge into an unknown token", tokenizer(|file| file["model"]["merges"] = json!(["z q"])), 3, id),
        case("a merge of one part", tokenizer(|file| file["model"]["merges"] = json!(["abc"])), 3, id),
        case("a merge of three parts", tokenizer(|file| file["model"]["merges"] = json!([["a", "b", "c"]])), 3, id),
        case("merges that are a text", tokenizer(|file| file["model"]["merges"] = json!("a b")), 3, id),
        case("dropout", tokenizer(|file| file["model"]["dropout"] = json!(0.1)), 3, "tokenizer-dropout"),
        case("dropout beyond 1", tokenizer(|file| file["model"]["dropout"] = json!(7)), 3, id),
        case(
            "an unknown step",
            tokenizer(|file| file["pre_tokenizer"] = json!({ "type": "Shell", "command": "id" })),
            3,
            id,
        ),
        case("a regex that is none", tokenizer(|file| file["pre_tokenizer"] = split("(")), 3, id),
        case(
            "a regex of a million repeats",
            tokenizer(|file| file["pre_tokenizer"] = split("(?:(?:(?:a{1000}){1000}){1000})")),
            3,
            id,
        ),
        case("a regex that is long", tokenizer(|file| file["pre_tokenizer"] = split(&"(a|b)".repeat(200_000))), 3, id),
        case(
            "a regex that nests",
            tokenizer(|file| file["pre_tokenizer"] = split(&format!("{}a{}", "(".repeat(50_000), ")".repeat(50_000)))),
            3,
            id,
        ),
        case(
            "a step of a million steps",
            tokenizer(|file| {
                let mut step = json!({ "type": "Whitespace" });
                for _ in 0..100 {
                    step = json!({ "type": "Sequence", "pretokenizers": [step] });
                }
                file["pre_tokenizer"] = step;
            }),
            3,
            id,
        ),
        case("an added token that is a number", tokenizer(|file| file["added_tokens"] = json!([3])), 3, id),
        case(
            "an added token without an id",
            tokenizer(|file| drop(file["added_tokens"][0].as_object_mut().unwrap().remove("id"))),
            3,
            id,
        ),
    ])
}

/// A step that cuts by a regular expression.
fn split(regex: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
}

pub(super) fn tokenizers_that_contradict_the_model() -> Vec<Case> {
    Vec::from([
        case(
            "an added token outside the model",
            tokenizer(|file| {
                let token = json!({ "id": 5000, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
                file["added_tokens"].as_array_mut().unwrap().push(token);
            }),
            3,
            "vocabulary-too-small",
        ),
        case(
            "a huge id",
            tokenizer(|file| file["model"]["vocab"]["zzz"] = json!(i32::MAX - 1)),
            3,
            "vocabulary-too-small",
        ),
        case(
            "a token that moves the cursor",
            tokenizer(|file| file["model"]["vocab"]["\u{1b}[2J\u{9b}"] = json!(5000)),
            3,
            "vocabulary-too-small",
        ),
        case("an eos that is no token", config("eos_token", json!("</s>")), 3, "special-token-unknown"),
        case("a bos that is no token", config("bos_token", json!({ "content": "<bos>" })), 3, "special-token-unknown"),
        case("an unk that moves the cursor", config("unk_token", json!("\u{1b}[2J")), 3, "special-token-unknown"),
        case(
            "a token of two ids",
            config("added_tokens_decoder", json!({ "7": { "content": "<unk>" } })),
            3,
            "tokenizer-inconsistent",
        ),
        case(
            "an added id that is a word",
            config("added_tokens_decoder", json!({ "seven": { "content": "x" } })),
            3,
            "tokenizer-inconsistent",
        ),
        case(
            "an added id below 0",
            config("added_tokens_decoder", json!({ "-1": { "content": "x" } })),
            3,
            "tokenizer-inconsistent",
        ),
        case(
            "an added token that is a number",
            config("added_tokens_decoder", json!({ "7": 7 })),
            3,
            "tokenizer-inconsistent",
        ),
        case(
            "a new token with another id",
            config("added_tokens_decoder", json!({ "9999": { "content": "<new>" } })),
            3,
            "tokenizer-inconsistent",
        ),
        case("a configuration that is a list", file("tokenizer_config.json", "[]"), 3, "config-invalid"),
        case("a configuration that is cut", file("tokenizer_config.json", "{\"eos_token\": "), 3, "config-invalid"),
        case("a configuration that is no text", file("tokenizer_config.json", b"{\"\xff\": 1}"), 3, "config-invalid"),
        case(
            "a configuration of a million zeros",
            file("tokenizer_config.json", format!("{{\"x\": [{}0]}}", "0,".repeat(1_000_000))),
            3,
            "config-invalid",
        ),
        case("special tokens that are a list", file("special_tokens_map.json", "[1]"), 3, "config-invalid"),
        case("a generation that is cut", file("generation_config.json", "{"), 3, "config-invalid"),
        case(
            "an end that is a fraction",
            file("generation_config.json", "{\"eos_token_id\": 0.5}"),
            3,
            "config-invalid",
        ),
        case(
            "ends of which one is null",
            file("generation_config.json", "{\"eos_token_id\": [0, null]}"),
            3,
            "config-invalid",
        ),
        case(
            "a beginning that is an object",
            file("generation_config.json", "{\"bos_token_id\": {}}"),
            3,
            "config-value",
        ),
        case(
            "a reward model without a tokenizer",
            |room| {
                let line = ppo(room, "");
                std::fs::remove_file(room.path("reward/tokenizer.json")).unwrap();
                line
            },
            3,
            "tokenizer-missing",
        ),
        case(
            "a reward model with a broken tokenizer",
            |room| {
                let line = ppo(room, "");
                room.write("reward/tokenizer.json", "{");
                line
            },
            3,
            "tokenizer-invalid",
        ),
    ])
}

pub(super) fn templates_that_are_not_valid() -> Vec<Case> {
    let id = "template-invalid";
    Vec::from([
        case("a tag that is not closed", template("{% if messages"), 3, id),
        case("an expression that is not closed", template("a\n{{ messages"), 3, id),
        case("a comment that is not closed", template("{# ..."), 3, id),
        case("a block that is not closed", template("{% for m in messages %}x"), 3, id),
        case("an unknown tag", template("{% exec 'id' %}"), 3, id),
        case("brackets without end", template(format!("{{{{ {}1 }}}}", "(".repeat(100_000))), 3, id),
        case("a long template", template("x".repeat(300_000)), 3, id),
        case("a number beyond all numbers", template("{{ 999999999999999999999999999999999999999999999999 }}"), 3, id),
        case(
            "bytes that are no text",
            |room| {
                room.write("model/chat_template.jinja", b"{{ '\xff' }}");
                room.rows("data.jsonl", &conversations(4));
                sft("")
            },
            3,
            "config-invalid",
        ),
        case("a template that is a number", config("chat_template", json!(3)), 3, id),
        case(
            "templates of which none is the default",
            config("chat_template", json!([{ "name": "a", "template": "" }, { "name": "b", "template": "" }])),
            3,
            "template-without-default",
        ),
        case("templates that are numbers", config("chat_template", json!([1, 2])), 3, "template-without-default"),
        case("an inner template that is broken", config("chat_template", json!("{% if %}")), 3, id),
        case(
            "templates of which the default is a number",
            config("chat_template", json!([{ "name": "default", "template": 1 }])),
            3,
            "template-without-default",
        ),
    ])
}

pub(super) fn templates_that_never_end() -> Vec<Case> {
    let doubling = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
        )
    };
    let work = "template-too-much-work";
    Vec::from([
        case(
            "loops in loops",
            template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
            3,
            work,
        ),
        case("a range without end", template("{% for a in range(999999999999) %}{% endfor %}"), 3, "template-failed"),
        case("a list without end", template("{{ range(999999999) | list | length }}"), 3, "template-failed"),
        case("a text that doubles", template(doubling("'ab'", "ns.x ~ ns.x")), 3, work),
        case("a text that doubles by adding", template(doubling("'ab'", "ns.x + ns.x")), 3, work),
        case("a text that doubles by joining", template(doubling("'ab'", "[ns.x, ns.x] | join")), 3, work),
        case("a text that doubles by replacing", template(doubling("'ab'", "ns.x | replace('a', 'aa')")), 3, work),
        case("a list that doubles", template(doubling("[1]", "ns.x + ns.x")), 3, "template-failed"),
        case("a list of itself", template(doubling("[1]", "[ns.x, ns.x]")), 3, "template-failed"),
        case(
            "a namespace in itself",
            template("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}"),
            3,
            "template-failed",
        ),
        case("a text a hundred million times", template("{{ 'a' * 100000000 }}"), 3, work),
        case("a text a trillion times", template("{{ 'a' * 1000000000000 }}"), 3, work),
        case("a list a hundred million times", template("{{ [0] * 100000000 }}"), 3, "template-failed"),
        case("an indent of a gigabyte", template("{{ 'a\\nb' | indent(1000000000) }}"), 3, work),
        case("a centre of a gigabyte", template("{{ '%1000000000s' | format('a') }}"), 3, work),
        case("a power tower", template("{{ 9 ** 9 ** 9 ** 9 }}"), 3, "template-failed"),
        case("JSON that nests", template(doubling("'a'", "{'a': ns.x}")), 3, "dataset-nothing-left"),
        case(
            "output without end",
            template("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"),
            3,
            "template-output-too-large",
        ),
        case(
            "a macro that calls itself",
            template("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}"),
            3,
            "template-failed",
        ),
        case(
            "two macros that call each other",
            template("{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}"),
            3,
            "template-failed",
        ),
        case(
            "a loop that calls itself",
            template("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}"),
            3,
            "template-failed",
        ),
    ])
}

pub(super) fn templates_that_reach_out() -> Vec<Case> {
    let id = "template-failed";
    Vec::from([
        case("a file that is included", template("{% include '/etc/passwd' %}"), 3, id),
        case("a file that is imported", template("{% import 'os' as os %}{{ os }}"), 3, id),
        case("a file that is extended", template("{% extends '../secret.jinja' %}"), 3, id),
        case("a class's way out", template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), 3, id),
        case("a global's way out", template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"), 3, id),
        case("a format's way out", template("{{ '{0.__class__}'.format(messages) }}"), 3, id),
        case("an unknown function", template("{{ open('/etc/passwd').read() }}"), 3, id),
        case("an unknown filter", template("{{ messages | system }}"), 3, id),
        case(
            "a refusal that moves the cursor",
            template("{{ raise_exception('\\u001b[2J\\u202e') }}"),
            3,
            "template-raised",
        ),
        case("a refusal without end", template("{{ raise_exception('no ' * 10000) }}"), 3, "template-raised"),
        case(
            "turns in another order",
            template("{% for m in messages | reverse %}{{ m.content }}<|endoftext|>{% endfor %}"),
            3,
            "template-not-prefix",
        ),
        case("turns that are not shown", template("nothing"), 3, "dataset-nothing-left"),
        case("a division by 0", template("{{ 1 // 0 }}"), 3, id),
        case("a sum of a text and a number", template("{{ messages + 1 }}"), 3, id),
    ])
}
