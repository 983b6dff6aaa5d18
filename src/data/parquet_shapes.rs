//! Which type each field of Parquet's metadata has. The decoder reads the fields that it knows by their numbers alone,
//! whatever type the file gives them; where the two differ it goes on in the middle of a value, and steps through
//! whatever it takes for a list there. So `thrift.rs` holds the types of a file against these.
//! Source: the Parquet format's Thrift definition, and the encryption's part of it left out.

use super::thrift::Shape::{self, Byte, Bytes, Double, Integer, List, Struct, Truth};

/// `FileMetaData`, the footer.
pub(super) static FOOTER: &[(i64, Shape)] = &[
    (1, Integer),
    (2, List(&Struct(SCHEMA_ELEMENT))),
    (3, Integer),
    (4, List(&Struct(ROW_GROUP))),
    (5, List(&Struct(KEY_VALUE))),
    (6, Bytes),
    (7, List(&Struct(COLUMN_ORDER))),
];

pub(super) static SCHEMA_ELEMENT: &[(i64, Shape)] = &[
    (1, Integer),
    (2, Integer),
    (3, Integer),
    (4, Bytes),
    (5, Integer),
    (6, Integer),
    (7, Integer),
    (8, Integer),
    (9, Integer),
    (10, Struct(LOGICAL_TYPE)),
];

/// A union, most of whose members are empty.
static LOGICAL_TYPE: &[(i64, Shape)] = &[
    (1, Struct(&[])),
    (2, Struct(&[])),
    (3, Struct(&[])),
    (4, Struct(&[])),
    (5, Struct(&[(1, Integer), (2, Integer)])),
    (6, Struct(&[])),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte), (2, Truth)])),
    (11, Struct(&[])),
    (12, Struct(&[])),
    (13, Struct(&[])),
    (14, Struct(&[])),
    (15, Struct(&[])),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Bytes)])),
    (18, Struct(&[(1, Bytes), (2, Integer)])),
    (19, Struct(&[])),
];

static TIME: &[(i64, Shape)] = &[(1, Truth), (2, Struct(&[(1, Struct(&[])), (2, Struct(&[])), (3, Struct(&[]))]))];

static COLUMN_ORDER: &[(i64, Shape)] = &[(1, Struct(&[])), (2, Struct(&[])), (3, Struct(&[]))];

static KEY_VALUE: &[(i64, Shape)] = &[(1, Bytes), (2, Bytes)];

static ROW_GROUP: &[(i64, Shape)] = &[
    (1, List(&Struct(COLUMN_CHUNK))),
    (2, Integer),
    (3, Integer),
    (4, List(&Struct(&[(1, Integer), (2, Truth), (3, Truth)]))),
    (5, Integer),
    (6, Integer),
    (7, Integer),
];

static COLUMN_CHUNK: &[(i64, Shape)] =
    &[(1, Bytes), (2, Integer), (3, Struct(COLUMN)), (4, Integer), (5, Integer), (6, Integer), (7, Integer)];

static COLUMN: &[(i64, Shape)] = &[
    (1, Integer),
    (2, List(&Integer)),
    (3, List(&Bytes)),
    (4, Integer),
    (5, Integer),
    (6, Integer),
    (7, Integer),
    (8, List(&Struct(KEY_VALUE))),
    (9, Integer),
    (10, Integer),
    (11, Integer),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(&[(1, Integer), (2, Integer), (3, Integer)]))),
    (14, Integer),
    (15, Integer),
    (16, Struct(&[(1, Integer), (2, List(&Integer)), (3, List(&Integer))])),
    (17, Struct(&[(1, Struct(BOUNDING_BOX)), (2, List(&Integer))])),
];

static STATISTICS: &[(i64, Shape)] =
    &[(1, Bytes), (2, Bytes), (3, Integer), (4, Integer), (5, Bytes), (6, Bytes), (7, Truth), (8, Truth), (9, Integer)];

static BOUNDING_BOX: &[(i64, Shape)] =
    &[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)];

/// `PageHeader`, with the header of one kind of page inside.
pub(super) static PAGE_HEADER: &[(i64, Shape)] = &[
    (1, Integer),
    (2, Integer),
    (3, Integer),
    (4, Integer),
    (5, Struct(DATA_PAGE)),
    (6, Struct(&[])),
    (7, Struct(DICTIONARY_PAGE)),
    (8, Struct(DATA_PAGE_V2)),
];

pub(super) static DATA_PAGE: &[(i64, Shape)] =
    &[(1, Integer), (2, Integer), (3, Integer), (4, Integer), (5, Struct(STATISTICS))];

pub(super) static DICTIONARY_PAGE: &[(i64, Shape)] = &[(1, Integer), (2, Integer), (3, Truth)];

pub(super) static DATA_PAGE_V2: &[(i64, Shape)] = &[
    (1, Integer),
    (2, Integer),
    (3, Integer),
    (4, Integer),
    (5, Integer),
    (6, Integer),
    (7, Truth),
    (8, Struct(STATISTICS)),
];
