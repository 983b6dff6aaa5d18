//! Parquet: every type that a data set uses, every codec, and files that mean harm.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::data_type::{BoolType, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

use super::super::records::read_rows as read_any;
use super::*;

const SCHEMA: &str = "message rows {
    OPTIONAL BYTE_ARRAY prompt (UTF8);
    REQUIRED INT64 n;
    OPTIONAL DOUBLE margin;
    OPTIONAL BOOLEAN flag;
    OPTIONAL GROUP messages (LIST) { REPEATED GROUP list { OPTIONAL GROUP element {
        OPTIONAL BYTE_ARRAY role (UTF8); OPTIONAL BYTE_ARRAY content (UTF8);
    } } }
    OPTIONAL BYTE_ARRAY raw;
}";

fn texts(texts: &[&str]) -> Vec<ByteArray> {
    texts.iter().map(|text| ByteArray::from(*text)).collect()
}

/// Two rows of `SCHEMA`: a full one, and one of nulls.
fn write(properties: WriterProperties) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = file.next_row_group().unwrap();
    macro_rules! column {
        ($kind:ty, $values:expr, $definitions:expr, $repetitions:expr) => {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<$kind>().write_batch(&$values, $definitions, $repetitions).unwrap();
            column.close().unwrap();
        };
    }
    column!(ByteArrayType, texts(&["é\n"]), Some(&[1, 0]), None);
    column!(Int64Type, [1, -(1 << 60)], None, None);
    column!(DoubleType, [0.5, f64::NAN], Some(&[1, 1]), None);
    column!(BoolType, [true], Some(&[1, 0]), None);
    column!(ByteArrayType, texts(&["user", "assistant"]), Some(&[4, 4, 0]), Some(&[0, 1, 0]));
    column!(ByteArrayType, texts(&["hi"]), Some(&[4, 3, 0]), Some(&[0, 1, 0]));
    column!(ByteArrayType, [ByteArray::from(vec![0xff, 0]), ByteArray::from("x")], Some(&[1, 1]), None);
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Row>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    read_any(file.path())
}

#[test]
fn every_type_codec_and_page_version() {
    let codecs =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW, Compression::GZIP(GzipLevel::default())];
    for (codec, version) in codecs.into_iter().flat_map(|codec| [(codec, 1), (codec, 2)]) {
        let properties = WriterProperties::builder().set_compression(codec);
        let properties = match version {
            1 => properties,
            // The second version's default encodings are the delta ones.
            _ => properties.set_writer_version(WriterVersion::PARQUET_2_0).set_encoding(Encoding::PLAIN),
        };
        let rows = read(&write(properties.build())).unwrap();
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant"}]);
        let first =
            json!({"prompt": "é\n", "n": 1, "margin": 0.5, "flag": true, "messages": messages, "raw": {"bytes": 2}});
        let second = json!({"n": -(1_i64 << 60), "margin": "NaN", "raw": "x"});
        let found: Vec<_> = rows.iter().map(|row| Value::Object(row.fields.clone())).collect();
        assert_eq!(found, [first, second], "{codec:?} {version}");
        assert!(rows[1].place.ends_with(": row 2"));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let delta = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_BINARY_PACKED);
    let delta = delta.set_column_encoding("prompt".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY);
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type("message rows { REQUIRED BYTE_ARRAY prompt (UTF8); }").unwrap());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(delta.build())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&["a"]), None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    let error = read(&bytes).unwrap_err();
    assert_eq!(error.id(), "parquet-encoding");
    assert!(error.to_string().contains("prompt"), "{error}");
    let check = super::super::parquet_limits::check_codec;
    let error = check("prompt", Compression::ZSTD(ZstdLevel::default())).unwrap_err();
    assert_eq!(error.id(), "parquet-codec");
    assert!(error.to_string().contains("zstd") && error.to_string().contains("snappy"), "{error}");
    assert!(check("prompt", Compression::SNAPPY).is_ok());
}

#[test]
fn broken_files_are_errors() {
    let whole = write(WriterProperties::new());
    assert_eq!(read(b"PAR1").unwrap_err().id(), "parquet-damaged");
    for length in [8, whole.len() / 2, whole.len() - 1] {
        assert_eq!(read(&whole[..length]).unwrap_err().id(), "parquet-damaged");
    }
    let mut encrypted = whole.clone();
    let end = encrypted.len() - 4;
    encrypted[end..].copy_from_slice(b"PARE");
    assert_eq!(read(&encrypted).unwrap_err().id(), "parquet-encrypted");
    let mut long = whole;
    let at = long.len() - 8;
    long[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(read(&long).unwrap_err().id(), "parquet-damaged");
}

/// A footer with nothing but a schema of elements that declare these numbers of children.
fn schema_only(children: impl Iterator<Item = u32>) -> Vec<u8> {
    let varint = |mut value: u64| {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    };
    let mut elements = Vec::new();
    let mut count = 0;
    for declared in children {
        // 3: repetition optional; 4: name "a"; 5: number of children
        elements.extend([0x35, 0x02, 0x18, 1, b'a', 0x15]);
        elements.extend(varint(u64::from(declared) * 2));
        elements.push(0);
        count += 1;
    }
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    footer.extend(varint(count));
    footer.extend(elements);
    // 3: rows; 4: no row groups
    footer.extend([0x16, 2, 0x19, 0x0c, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", footer.as_slice(), &length, b"PAR1"].concat()
}

#[test]
fn schemas_that_overflow_are_refused() {
    let error = |children: Vec<u32>| read(&schema_only(children.into_iter())).unwrap_err().to_string();
    assert!(error((0..1500).map(|i| u32::from(i < 1499)).collect()).contains("nested too deeply"));
    assert!(error(vec![0x7fff_ffff, 0]).contains("broken"));
    assert!(error(vec![1, 0, 0]).contains("broken"));
    assert!(error(vec![0; 3000]).contains("not valid Thrift"));
}

#[test]
fn a_row_that_expands_beyond_its_file_is_refused() {
    let schema =
        "message rows { REQUIRED GROUP l (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } } }";
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::new())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = vec![ByteArray::from(vec![b'a'; 1 << 16]); 4400];
    let repetitions: Vec<i16> = (0..4400).map(|index| i16::from(index > 0)).collect();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 4400]), Some(&repetitions)).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    assert!(bytes.len() < 1 << 18, "{}", bytes.len());
    assert_eq!(read(&bytes).unwrap_err().id(), "parquet-expands");
}

#[test]
fn flipped_bytes_neither_panic_nor_hang() {
    let mut seed = 1_u32;
    let mut draw = |bound: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % bound
    };
    let codecs = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(GzipLevel::default())];
    let files = codecs.map(|codec| write(WriterProperties::builder().set_compression(codec).build()));
    let mut refused = 0;
    for round in 0..1500 {
        let mut bytes = files[round % files.len()].clone();
        for _ in 0..=draw(3) {
            let at = draw(bytes.len());
            bytes[at] = draw(256) as u8;
        }
        refused += usize::from(read(&bytes).is_err());
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn gzip_is_inflated_under_a_bound() {
    use super::super::parquet_limits::{Page, check_inflation};
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 1 << 20]).unwrap();
    let packed = packed.finish().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&packed).unwrap();
    let page = |bytes| Page { bytes, compressed_bytes: packed.len() as u64, ..Page::default() };
    assert!(check_inflation(&file, 0, &page(1 << 20), "a").is_ok());
    let error = check_inflation(&file, 0, &page(1000), "a").unwrap_err();
    assert!(error.to_string().contains("inflates to more than the 1000 bytes"), "{error}");
    assert!(check_inflation(&file, 3, &page(1 << 20), "a").is_err());
}
