//! What a Parquet file declares, checked against the file's size and fixed limits before the decoder allocates by it:
//! the footer's length, the schema's depth and width, each page's size, number of values, encoding and codec, and what
//! gzip really inflates to. A decompression bomb ends here.

use std::io::{Read, Take};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;

use super::parquet::{MAGIC, damaged};
use super::parquet_shapes::{DATA_PAGE, DATA_PAGE_V2, DICTIONARY_PAGE, FOOTER, PAGE_HEADER, SCHEMA_ELEMENT};
use super::thrift::{Broken, Compact, Kind, Shape, Step};
use crate::error::{Error, Result};

/// The longest footer, in bytes. Hundreds of row groups of dozens of columns need less than one MiB.
const FOOTER_BYTES_MAX: u64 = 16 << 20;

/// The most columns and groups of a schema, and how deep they nest. The decoder recurses over the schema.
const SCHEMA_NODES_MAX: usize = 2000;
const SCHEMA_DEPTH_MAX: usize = 32;

/// The largest page, in bytes after decompression. Writers aim at 1 MiB.
const PAGE_BYTES_MAX: u64 = 256 << 20;

/// What the decoder may hold at once of a file of `size` bytes: a page and a dictionary of every column.
fn held_bytes_max(size: u64) -> u64 {
    (32 << 20) + size.saturating_mul(2)
}

/// The most values that a page of few bytes may declare: a run of equal values needs no more bytes than one of them,
/// and writers make row groups of 2^20 rows.
const RUN_VALUES_MAX: u64 = 1 << 21;

/// The most values of a column inside lists, for a row group: a single row may hold them all at once.
const LIST_VALUES_MAX: u64 = 1 << 24;

/// What a value costs in memory beside its bytes, for the budget. A JSON value takes 72 bytes in a map.
pub(super) const VALUE_BYTES: u64 = 64;

/// The memory that one file may expand to.
pub(super) struct Budget {
    total: u64,
    left: u64,
}

impl Budget {
    /// 256 MiB, so that small files may repeat themselves, and 64 times the size of the file.
    pub(super) fn for_file(size: u64) -> Self {
        let total = size.saturating_mul(64).saturating_add(256 << 20);
        Self { total, left: total }
    }

    /// Takes `bytes` away; error `parquet-expands` once nothing is left.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<()> {
        let total = self.total;
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            let error = Error::input("parquet-expands", format!("the file expands to more than {} MiB", total >> 20));
            error.because("its content is far larger than the file").fix("save it as JSON Lines if that is meant")
        })?;
        Ok(())
    }
}

/// Checks the footer's length and the schema.
pub(super) fn check_footer(file: &impl ChunkReader, size: u64) -> Result<()> {
    let footer_end = size.checked_sub(8).ok_or_else(|| damaged("the file is too short to be Parquet"))?;
    let tail = read_at(file, footer_end, 8)?;
    let [a, b, c, d, magic @ ..] = *tail.first_chunk::<8>().ok_or_else(|| damaged("the file has shrunk"))?;
    if magic == *b"PARE" {
        let error = Error::input("parquet-encrypted", "the Parquet file is encrypted");
        return Err(error.fix("decrypt it, or save it as JSON Lines"));
    }
    if magic != *MAGIC {
        return Err(damaged("it does not end with PAR1: it is cut short, or no Parquet file"));
    }
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if length > footer_end || length > FOOTER_BYTES_MAX {
        return Err(damaged(format!("the footer claims {length} bytes in a file of {size}")));
    }
    let footer = read_at(file, footer_end - length, length)?;
    let mut children = Vec::new();
    let walk = Compact::new(&footer).fields(FOOTER, |walk, id, kind| match (id, kind) {
        (2, Kind::List) => walk_schema(walk, &mut children).map(|()| true),
        _ => Ok(false),
    });
    walk.map_err(|_| damaged("the footer is not valid Thrift"))?;
    if !schema_is_sound(&children) {
        return Err(damaged(format!("the schema of {} elements is broken, or nested too deeply", children.len())));
    }
    Ok(())
}

/// Collects how many children each element of the schema declares. A second schema in one footer counts as more of the
/// first, which makes it unsound.
fn walk_schema(walk: &mut Compact, children: &mut Vec<i64>) -> Step<()> {
    let (Kind::Struct, size) = walk.list()? else { return Err(Broken::Bad) };
    if size + children.len() > SCHEMA_NODES_MAX {
        return Err(Broken::Bad);
    }
    for _ in 0..size {
        let mut declared = 0;
        walk.fields(SCHEMA_ELEMENT, |walk, id, kind| {
            let is_count = (id, kind) == (5, Kind::Integer);
            if is_count {
                declared = walk.integer()?;
            }
            Ok(is_count)
        })?;
        children.push(declared);
    }
    Ok(())
}

/// The schema lists its tree in depth-first order: every element must be a child of one before it.
fn schema_is_sound(children: &[i64]) -> bool {
    let mut open: Vec<i64> = vec![1];
    for &declared in children {
        while open.last() == Some(&0) {
            open.pop();
        }
        match open.last_mut() {
            Some(left) => *left -= 1,
            None => return false,
        }
        if declared < 0 || declared > children.len() as i64 {
            return false;
        }
        open.push(declared);
        if open.len() > SCHEMA_DEPTH_MAX {
            return false;
        }
    }
    !children.is_empty() && open.iter().all(|left| *left == 0)
}

/// What a page header says about its page.
#[derive(Default)]
pub(super) struct Page {
    pub(super) bytes: u64,
    pub(super) compressed_bytes: u64,
    pub(super) values: u64,
    pub(super) encoding: i64,
    pub(super) is_dictionary: bool,
    /// Levels of a version-2 page, which are never compressed.
    pub(super) level_bytes: u64,
    pub(super) is_compressed: bool,
}

/// Refuses pages that together, unpacked, are far larger than their file.
pub(super) fn check_held(held: u64, size: u64) -> Result<()> {
    let most = held_bytes_max(size);
    if held <= most {
        return Ok(());
    }
    let what = format!("pages unpack to {held} bytes at once in a file of {size}; at most {most} are held");
    Err(Error::input("parquet-expands", what).fix("write smaller pages and row groups, or JSON Lines"))
}

/// Steps over the pages of a column of a row group, reading headers only (and inflating gzip, which the decoder would
/// inflate without a bound). Returns how many bytes its largest page and its dictionary have.
pub(super) fn check_pages(
    file: &impl ChunkReader,
    size: u64,
    column: &ColumnChunkMetaData,
    budget: &mut Budget,
) -> Result<u64> {
    let name = column.column_path().string();
    check_codec(&name, column.compression())?;
    let (mut at, length) = column.byte_range();
    let end = at.checked_add(length).filter(|end| *end <= size);
    let end = end.ok_or_else(|| damaged(format!("column {name:?} lies outside the file")))?;
    let (mut values, mut largest, mut dictionary) = (0, 0, 0);
    while at < end {
        let (page, header_bytes) = read_header(file, at, end).map_err(|error| error.at(format!("column {name:?}")))?;
        check_page(&page, &name)?;
        at += header_bytes;
        if page.compressed_bytes > end - at {
            return Err(damaged(format!("a page of column {name:?} claims more bytes than there are")));
        }
        budget.spend(page.bytes + VALUE_BYTES)?;
        let size_so_far = if page.is_dictionary { &mut dictionary } else { &mut largest };
        *size_so_far = page.bytes.max(*size_so_far);
        check_held(largest + dictionary, size)?;
        if matches!(column.compression(), Compression::GZIP(_)) && page.is_compressed {
            check_inflation(file, at, &page, &name)?;
        }
        at += page.compressed_bytes;
        values += if page.is_dictionary { 0 } else { page.values };
        if column.column_descr().max_rep_level() > 0 && values > LIST_VALUES_MAX {
            let what = format!("column {name:?} has more than {LIST_VALUES_MAX} list elements in one row group");
            return Err(Error::input("parquet-expands", what).fix("write smaller row groups, or JSON Lines"));
        }
    }
    Ok(largest + dictionary)
}

/// Whether the decoder has this codec, and under a bound.
pub(super) fn check_codec(name: &str, codec: Compression) -> Result<()> {
    let codec = match codec {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::LZ4_RAW | Compression::GZIP(_) => return Ok(()),
        Compression::ZSTD(_) => "zstd",
        Compression::BROTLI(_) => "brotli",
        Compression::LZO => "lzo",
        Compression::LZ4 => "lz4 in its old Hadoop framing",
    };
    let error = Error::input("parquet-codec", format!("column {name:?} is compressed with {codec}"));
    Err(error.because("snappy, gzip, lz4 (raw) and no compression are read").fix(
        "rewrite it: python -c \"import pyarrow.parquet as p; p.write_table(p.read_table('in.parquet'), \
         'out.parquet', compression='snappy')\", or save it as JSON Lines",
    ))
}

/// Reads the page header at `at`; it may be as long as the statistics in it.
fn read_header(file: &impl ChunkReader, at: u64, end: u64) -> Result<(Page, u64)> {
    for length in [4 << 10, FOOTER_BYTES_MAX] {
        let bytes = read_at(file, at, length.min(end - at))?;
        let mut walk = Compact::new(&bytes);
        match walk_header(&mut walk) {
            Ok(page) => return Ok((page, (bytes.len() - walk.left()) as u64)),
            Err(Broken::Short) if (bytes.len() as u64) < end - at => {}
            Err(_) => break,
        }
    }
    Err(damaged("a page header is not valid Thrift"))
}

fn walk_header(walk: &mut Compact) -> Step<Page> {
    let mut page = Page { is_compressed: true, encoding: -1, ..Page::default() };
    walk.fields(PAGE_HEADER, |walk, id, kind| {
        match (id, kind) {
            (2, Kind::Integer) => page.bytes = size_of(walk)?,
            (3, Kind::Integer) => page.compressed_bytes = size_of(walk)?,
            (5 | 7 | 8, Kind::Struct) => {
                page.is_dictionary = id == 7;
                let (known, encoding_field) = match id {
                    5 => (DATA_PAGE, 2),
                    7 => (DICTIONARY_PAGE, 2),
                    _ => (DATA_PAGE_V2, 4),
                };
                walk_page_kind(walk, &mut page, known, encoding_field)?;
            }
            // No page header has a list; the decoder would step through one however long it says it is.
            (_, Kind::List) => return Err(Broken::Bad),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(page)
}

/// The header inside the header: of a data page, of its second version, or of a dictionary.
fn walk_page_kind(
    walk: &mut Compact,
    page: &mut Page,
    known: &'static [(i64, Shape)],
    encoding_field: i64,
) -> Step<()> {
    walk.fields(known, |walk, id, kind| {
        match (id, kind) {
            (1, Kind::Integer) => page.values = size_of(walk)?,
            (id, Kind::Integer) if id == encoding_field => page.encoding = walk.integer()?,
            (5 | 6, Kind::Integer) if encoding_field == 4 => page.level_bytes += size_of(walk)?,
            (7, Kind::True | Kind::False) if encoding_field == 4 => page.is_compressed = kind == Kind::True,
            (_, Kind::List) => return Err(Broken::Bad),
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn size_of(walk: &mut Compact) -> Step<u64> {
    u64::try_from(walk.integer()?).map_err(|_| Broken::Bad)
}

fn check_page(page: &Page, name: &str) -> Result<()> {
    if page.bytes > PAGE_BYTES_MAX {
        return Err(damaged(format!("a page of column {name:?} claims {} bytes", page.bytes)));
    }
    // Each value of a dictionary has bytes of its own; elsewhere a run stands for many.
    let most = if page.is_dictionary { page.bytes } else { page.bytes.max(RUN_VALUES_MAX) };
    if page.values > most || page.level_bytes > page.bytes {
        let why = format!("a page of column {name:?} claims {} values in {} bytes", page.values, page.bytes);
        return Err(damaged(why));
    }
    // The delta encodings allocate by a number inside the compressed data, which nothing here can check.
    let encoding = match page.encoding {
        // None said (an index page), plain, both spellings of dictionary, run-length, bit-packed, byte-split.
        -1 | 0 | 2 | 3 | 4 | 8 | 9 => return Ok(()),
        5..=7 => "a delta encoding".to_string(),
        other => format!("the unknown encoding {other}"),
    };
    let error = Error::input("parquet-encoding", format!("column {name:?} is written in {encoding}"));
    Err(error.fix("write it with the writer's default encodings, or save it as JSON Lines"))
}

/// Inflates a page into nothing, up to the size it declares.
pub(super) fn check_inflation(file: &impl ChunkReader, at: u64, page: &Page, name: &str) -> Result<()> {
    let outside = || damaged(format!("a page of column {name:?} has levels longer than itself"));
    let compressed = page.compressed_bytes.checked_sub(page.level_bytes).ok_or_else(outside)?;
    let declared = page.bytes - page.level_bytes;
    let source = file.get_read(at + page.level_bytes).map_err(|error| damaged(error.to_string()))?;
    let mut inflated: Take<_> = MultiGzDecoder::new(source.take(compressed)).take(declared + 1);
    match std::io::copy(&mut inflated, &mut std::io::sink()) {
        Ok(inflated) if inflated <= declared => Ok(()),
        Ok(_) => {
            Err(damaged(format!("a page of column {name:?} inflates to more than the {declared} bytes it claims")))
        }
        Err(error) => Err(damaged(format!("a page of column {name:?} is not gzip: {error}"))),
    }
}

/// Reads `length` bytes, which the caller has checked against the file's size.
fn read_at(file: &impl ChunkReader, at: u64, length: u64) -> Result<Vec<u8>> {
    let source = file.get_read(at).map_err(|error| damaged(error.to_string()))?;
    let mut bytes = Vec::new();
    source.take(length).read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(bytes)
}
