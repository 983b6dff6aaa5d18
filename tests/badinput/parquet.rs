//! Parquet files that are cut, forged or bombs: footers, schemas and pages that claim what is not there, codecs and
//! encodings that are not read, and columns that are no examples.

use std::sync::Arc;

use parquet::basic::{Compression, Encoding, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::{Case, case, ppo, reward, sft};
use crate::support::Room;

const TEXT: &str = "message rows { REQUIRED BYTE_ARRAY text (UTF8); }";

/// A file of one row group with one column of texts.
fn texts(schema: &str, properties: WriterPropertiesBuilder, texts: &[ByteArray], levels: Option<&[i16]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let definitions = levels.map(|levels| vec![1; levels.len()]);
    column.typed::<ByteArrayType>().write_batch(texts, definitions.as_deref(), levels).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

fn good() -> Vec<u8> {
    texts(TEXT, WriterProperties::builder(), &[ByteArray::from("one two"), ByteArray::from("three")], None)
}

/// A file of one column of whole numbers.
fn numbers(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type("message rows { REQUIRED INT32 n; }").unwrap());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::new())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&vec![7; count], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

/// The same file with its bytes changed.
fn changed(change: fn(&mut Vec<u8>)) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    written(move || {
        let mut bytes = good();
        change(&mut bytes);
        bytes
    })
}

fn written(make: impl Fn() -> Vec<u8> + Send + Sync) -> impl Fn(&Room) -> String + Send + Sync {
    move |room| {
        room.write("data.parquet", make());
        sft("--dataset data.parquet")
    }
}

/// Where the footer begins.
fn footer(bytes: &[u8]) -> usize {
    let end = bytes.len() - 8;
    end - u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap()) as usize
}

pub(super) fn parquet_that_is_broken() -> Vec<Case> {
    let id = "parquet-damaged";
    let of_length = |length: u32| {
        written(move || {
            let mut bytes = good();
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
            bytes
        })
    };
    Vec::from([
        case("only the magic", changed(|bytes| bytes.truncate(4)), 3, id),
        case("half of the file", changed(|bytes| bytes.truncate(bytes.len() / 2)), 3, id),
        case("one byte short", changed(|bytes| bytes.truncate(bytes.len() - 1)), 3, id),
        case("nothing, by the name of Parquet", changed(Vec::clear), 3, id),
        case("JSON Lines by the name of Parquet", changed(|bytes| *bytes = b"{\"text\": \"a\"}\n".to_vec()), 3, id),
        case("another magic at the end", changed(|bytes| *bytes.last_mut().unwrap() = b'2'), 3, id),
        case("an encrypted footer", changed(|bytes| *bytes.last_mut().unwrap() = b'E'), 3, "parquet-encrypted"),
        case("a footer of 4 GB", of_length(u32::MAX), 3, id),
        case("a footer longer than the file", of_length(10_000), 3, id),
        case("no footer", of_length(0), 3, id),
        case("a footer that is cut", of_length(12), 3, id),
        case(
            "a footer of zeros",
            changed(|bytes| {
                let (at, end) = (footer(bytes), bytes.len() - 8);
                bytes[at..end].fill(0);
            }),
            3,
            id,
        ),
        case(
            "a footer of ones",
            changed(|bytes| {
                let (at, end) = (footer(bytes), bytes.len() - 8);
                bytes[at..end].fill(0xff);
            }),
            3,
            id,
        ),
        case(
            "pages of zeros",
            changed(|bytes| {
                let end = footer(bytes);
                bytes[4..end].fill(0);
            }),
            3,
            id,
        ),
        case(
            "pages of ones",
            changed(|bytes| {
                let end = footer(bytes);
                bytes[4..end].fill(0xff);
            }),
            3,
            id,
        ),
        case(
            "pages of text",
            changed(|bytes| {
                let end = footer(bytes);
                bytes[4..end].fill(b'a');
            }),
            3,
            id,
        ),
        case("bytes before the footer that are gone", changed(|bytes| drop(bytes.drain(8..20))), 3, id),
    ])
}

pub(super) fn parquet_that_is_not_read() -> Vec<Case> {
    let with = |properties: fn() -> WriterPropertiesBuilder| {
        written(move || texts(TEXT, properties(), &[ByteArray::from("a")], None))
    };
    let delta = || WriterProperties::builder().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_BYTE_ARRAY);
    Vec::from([
        case("a delta encoding", with(delta), 3, "parquet-encoding"),
        case("whole numbers only", written(|| numbers(8)), 3, "dataset-columns"),
        case(
            "a column that is named otherwise",
            written(|| {
                texts(
                    "message rows { REQUIRED BYTE_ARRAY txt (UTF8); }",
                    WriterProperties::builder(),
                    &[ByteArray::from("a")],
                    None,
                )
            }),
            3,
            "dataset-columns",
        ),
        case(
            "a name that moves the cursor",
            written(|| {
                texts(
                    "message rows { REQUIRED BYTE_ARRAY \u{1b}[2J (UTF8); }",
                    WriterProperties::builder(),
                    &[ByteArray::from("a")],
                    None,
                )
            }),
            3,
            "dataset-columns",
        ),
        case(
            "bytes as a text",
            written(|| {
                texts(
                    "message rows { REQUIRED BYTE_ARRAY text; }",
                    WriterProperties::builder(),
                    &[ByteArray::from(vec![0xff, 0xfe])],
                    None,
                )
            }),
            3,
            "dataset-column-type",
        ),
        case(
            "bytes that are said to be text",
            written(|| texts(TEXT, WriterProperties::builder(), &[ByteArray::from(vec![0xff, 0xfe])], None)),
            3,
            "parquet-damaged",
        ),
        case("no rows", written(|| texts(TEXT, WriterProperties::builder(), &[], None)), 3, "dataset-empty"),
        case(
            "texts for a reward model",
            |room| {
                room.write("pairs.parquet", good());
                reward("--dataset pairs.parquet")
            },
            3,
            "dataset-columns",
        ),
        case(
            "texts for PPO",
            |room| {
                room.write("prompts.parquet", good());
                ppo(room, "--dataset prompts.parquet")
            },
            3,
            "dataset-columns",
        ),
        case(
            "Parquet by the name of JSON Lines",
            |room| {
                room.write("data.jsonl", numbers(8));
                sft("")
            },
            3,
            "dataset-columns",
        ),
    ])
}

pub(super) fn parquet_that_expands() -> Vec<Case> {
    let gzip = || WriterProperties::builder().set_compression(Compression::GZIP(GzipLevel::default()));
    let list =
        "message rows { REQUIRED GROUP text (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } } }";
    let long = |bytes: usize| ByteArray::from(vec![b'a'; bytes]);
    Vec::from([
        case(
            "one text of 80 MB in gzip",
            written(move || texts(TEXT, gzip(), &[long(80 << 20)], None)),
            3,
            "parquet-expands",
        ),
        case(
            "a dictionary's text in a row, many times",
            written(move || {
                let levels: Vec<i16> = (0..9_000).map(|i| i16::from(i > 0)).collect();
                texts(list, WriterProperties::builder(), &vec![long(1 << 15); 9_000], Some(&levels))
            }),
            3,
            "parquet-expands",
        ),
        case(
            "a dictionary's text in many rows",
            written(move || texts(TEXT, WriterProperties::builder(), &vec![long(1 << 15); 9_000], None)),
            3,
            "parquet-expands",
        ),
        case("two million equal numbers", written(|| numbers(2_000_000)), 3, "dataset-columns"),
    ])
}
