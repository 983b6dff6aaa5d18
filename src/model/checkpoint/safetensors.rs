//! The safetensors format: eight bytes with the header's length (little endian), a JSON header that names each tensor's
//! dtype, shape and byte range, and the bytes. The header is outside data: before anything is believed, every length is
//! held against the file's, and the ranges must cover the rest of the file exactly, without hole or overlap.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::io::Read;

use half::{bf16, f16};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::super::config::{StoredDtype, printable, quoted};
use crate::error::{Error, Result};

/// About 100 000 tensors, ten times as many as a model has; the format's own limit is 100 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// The length before the header.
const PREFIX_BYTES: u64 = 8;
/// Longer names are not names.
const NAME_BYTES_MAX: usize = 1024;
/// Weights have at most 4 dimensions; a long list of them is a way to spend memory.
const DIMENSIONS_MAX: usize = 8;
/// Every dtype of the format, with its bits: those that we do not read still have to fill their range.
const DTYPES: [(&str, u64); 20] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("U16", 16),
    ("I16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("U32", 32),
    ("I32", 32),
    ("F32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F64", 64),
    ("C64", 64),
];

/// The format's name of a dtype.
pub(super) fn tag(dtype: StoredDtype) -> &'static str {
    match dtype {
        StoredDtype::F16 => "F16",
        StoredDtype::BF16 => "BF16",
        StoredDtype::F32 => "F32",
    }
}

/// The dtypes that we read.
pub(crate) fn stored(tag: &str) -> Option<StoredDtype> {
    match tag {
        "F16" => Some(StoredDtype::F16),
        "BF16" => Some(StoredDtype::BF16),
        "F32" => Some(StoredDtype::F32),
        _ => None,
    }
}

/// Bytes of one element.
pub(super) fn width(dtype: StoredDtype) -> u64 {
    match dtype {
        StoredDtype::F16 | StoredDtype::BF16 => 2,
        StoredDtype::F32 => 4,
    }
}

/// Where one tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    /// The format's name of the dtype.
    pub(crate) dtype: &'static str,
    /// Sizes of the dimensions.
    pub(crate) shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub(crate) begin: u64,
    /// Number of bytes: the elements times the dtype's width, and inside the file.
    pub(crate) bytes: u64,
}

/// Reads and checks the header of a file of `file_bytes` bytes.
///
/// # Errors
/// `weights-truncated` when the file is shorter than it says; `weights-header` for anything else that is wrong.
pub(crate) fn read_header(file: &mut dyn Read, file_bytes: u64, place: &str) -> Result<BTreeMap<String, Tensor>> {
    let bad = |why: String| {
        Error::input("weights-header", "the safetensors header is not valid")
            .at(place)
            .because(why)
            .fix("get the file again")
    };
    let reading = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => truncated(place, "the file ends inside the header".to_owned()),
        _ => Error::io("reading the weights", place.as_ref(), &e),
    };
    let Some(after_prefix) = file_bytes.checked_sub(PREFIX_BYTES) else {
        return Err(truncated(place, format!("it has {file_bytes} bytes, and the header's length alone takes 8")));
    };
    let mut prefix = [0; PREFIX_BYTES as usize];
    file.read_exact(&mut prefix).map_err(reading)?;
    let foreign = |why: &str, fix: &str| {
        let error = Error::input("weights-header", "the file is no safetensors file").at(place);
        Err(error.because(why).fix(fix))
    };
    if prefix == *b"version " {
        return foreign("it is a Git LFS pointer: the weights were not downloaded", "download them: `git lfs pull`");
    }
    if prefix.starts_with(b"PK\x03\x04") {
        return foreign(
            "it is a zip archive, such as torch.save writes; reading a pickle can run any program",
            "if you trust it, load it in Python and save it with save_pretrained",
        );
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(bad(format!("it claims {header_bytes} bytes; at most {HEADER_BYTES_MAX} are read")));
    }
    let Some(data_bytes) = after_prefix.checked_sub(header_bytes) else {
        return Err(truncated(place, format!("the header takes {header_bytes} bytes and the file has {file_bytes}")));
    };
    let mut text = vec![0; usize::try_from(header_bytes).map_err(|e| bad(e.to_string()))?];
    file.read_exact(&mut text).map_err(reading)?;
    if text.first() != Some(&b'{') {
        return Err(bad("it does not begin with {".to_owned()));
    }
    let Header(raw) = serde_json::from_slice(&text).map_err(|e| bad(printable(&e.to_string())))?;
    drop(text);
    let mut tensors = BTreeMap::new();
    for (name, entry) in raw {
        let tensor =
            entry.check(PREFIX_BYTES + header_bytes).map_err(|why| bad(format!("{}: {why}", quoted(&name))))?;
        tensors.insert(name, tensor);
    }
    let end = covered(&tensors, PREFIX_BYTES + header_bytes).map_err(bad)?;
    if end > file_bytes {
        return Err(truncated(place, format!("the tensors end at byte {end} and the file has {file_bytes}")));
    }
    if end < file_bytes {
        return Err(bad(format!("{} of {data_bytes} bytes belong to no tensor", file_bytes - end)));
    }
    Ok(tensors)
}

/// The error of a file that was cut.
pub(super) fn truncated(place: &str, why: String) -> Error {
    Error::input("weights-truncated", "the weights file is incomplete")
        .at(place)
        .because(why)
        .fix("finish the download or copy, or get the file again")
}

/// The end of the last range if the ranges follow each other from `start` on; otherwise why not.
fn covered(tensors: &BTreeMap<String, Tensor>, start: u64) -> std::result::Result<u64, String> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, t)| (t.begin, t.begin + t.bytes, name)).collect();
    ranges.sort_unstable();
    let mut end = start;
    for (begin, next, name) in ranges {
        if begin != end {
            let what = if begin < end { "overlaps the range before it" } else { "leaves a hole before its range" };
            return Err(format!("{} {what}", quoted(name)));
        }
        end = next;
    }
    Ok(end)
}

/// A header as it stands in the file, without `__metadata__`.
struct Header(BTreeMap<String, Entry>);

/// One tensor as it stands in the header.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Holds dtype, shape and range against each other; `start` is the file position that ranges count from.
    fn check(self, start: u64) -> std::result::Result<Tensor, String> {
        let Some((dtype, width)) = DTYPES.into_iter().find(|(name, _)| *name == self.dtype) else {
            return Err(format!("the dtype {} is unknown", quoted(&self.dtype)));
        };
        let (from, to) = self.data_offsets;
        let Some(bytes) = to.checked_sub(from) else { return Err("its range ends before it begins".to_owned()) };
        let bits = self.shape.0.iter().try_fold(width, |bits, size| bits.checked_mul(u64::try_from(*size).ok()?));
        // Multiplied by 8 on the other side, so that a shape that fills no whole byte does not pass.
        if bits.is_none() || bits != bytes.checked_mul(8) {
            return Err(format!("{dtype} {:?} does not fill its range of {bytes} bytes", self.shape.0));
        }
        let begin = start.checked_add(from).filter(|begin| begin.checked_add(bytes).is_some());
        let begin = begin.ok_or_else(|| "its range is too large".to_owned())?;
        Ok(Tensor { dtype, shape: self.shape.0, begin, bytes })
    }
}

/// A list of sizes, of bounded length.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of at most {DIMENSIONS_MAX} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = items.next_element()? {
                    if sizes.len() == DIMENSIONS_MAX {
                        return Err(A::Error::invalid_length(DIMENSIONS_MAX + 1, &self));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let (mut tensors, mut has_metadata) = (BTreeMap::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" && !has_metadata {
                        map.next_value::<UniqueMap>()?;
                        has_metadata = true;
                        continue;
                    }
                    if name.is_empty() || name.len() > NAME_BYTES_MAX || name == "__metadata__" {
                        return Err(A::Error::custom(format!("the tensor name {} is not allowed", quoted(&name))));
                    }
                    match tensors.entry(name) {
                        Slot::Vacant(slot) => slot.insert(map.next_value()?),
                        Slot::Occupied(slot) => return Err(repeated(slot.key())),
                    };
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The error for a name that stands twice, where readers would differ on which one counts.
fn repeated<E: serde::de::Error>(name: &str) -> E {
    E::custom(format!("{} stands twice", quoted(name)))
}

/// An object of texts in which no key stands twice.
#[derive(Debug)]
pub(super) struct UniqueMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueMap, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    match texts.entry(key) {
                        Slot::Vacant(slot) => slot.insert(map.next_value()?),
                        Slot::Occupied(slot) => return Err(repeated(slot.key())),
                    };
                }
                Ok(UniqueMap(texts))
            }
        }
        deserializer.deserialize_map(Texts)
    }
}

/// The prefix and header of a file with these tensors, all of one dtype, in this order. It ends on a multiple of eight
/// bytes, as the reference writer's does, so that a reader may map the file and use it in place.
pub(super) fn write_header<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a [usize], u64)>,
    dtype: StoredDtype,
) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for (name, shape, bytes) in tensors {
        let begin = end;
        end += bytes;
        header.insert(name.to_owned(), json!({ "dtype": tag(dtype), "shape": shape, "data_offsets": [begin, end] }));
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Appends the elements in `bytes`, a whole number of them, widened exactly.
pub(super) fn widen(dtype: StoredDtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        StoredDtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        StoredDtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        StoredDtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
    }
}

/// Appends the values' bytes, rounded to the nearest with ties to even. Returns the first value that is not finite
/// after rounding, by its index.
pub(super) fn narrow(dtype: StoredDtype, values: &[f32], bytes: &mut Vec<u8>) -> Option<usize> {
    match dtype {
        StoredDtype::F16 => {
            bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
            values.iter().position(|v| !f16::from_f32(*v).is_finite())
        }
        StoredDtype::BF16 => {
            bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
            values.iter().position(|v| !bf16::from_f32(*v).is_finite())
        }
        StoredDtype::F32 => {
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            values.iter().position(|v| !v.is_finite())
        }
    }
}
