//! The numbers of a run as TensorBoard reads them: records of a length, an `Event` message and their checksums
//! (tensorflow/core/lib/io/record_writer.h; tensorflow/core/util/event.proto). Only scalars are written, so the five
//! fields of three messages are encoded here.

use std::time::{SystemTime, UNIX_EPOCH};

use super::metrics::Row;

/// The file's name: TensorBoard takes every file whose name has `tfevents` in it.
pub(crate) const FILE: &str = "events.out.tfevents.rlhf";

/// What the file begins with.
pub(crate) fn head(now: SystemTime) -> Vec<u8> {
    record(&message(now, 0, 3, b"brain.Event:2"))
}

/// One record with the numbers of a step. PPO's keys stand as they are, in TRL's groups; those of the other stages are
/// put into a group of their stage.
pub(crate) fn event(now: SystemTime, stage: &str, step: usize, rows: [&Row; 2]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in rows.into_iter().flatten() {
        let Some(value) = value.as_f64() else { continue };
        let tag = if name.contains('/') { name.clone() } else { format!("{stage}/{name}") };
        let mut scalar = Vec::new();
        delimited(&mut scalar, 1, tag.as_bytes());
        key(&mut scalar, 2, FIXED_32);
        scalar.extend((value as f32).to_le_bytes());
        delimited(&mut summary, 1, &scalar);
    }
    record(&message(now, step as u64, 5, &summary))
}

/// Kinds of fields in protocol buffers.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

/// An `Event`: seconds since 1970, a step, and one more field.
fn message(now: SystemTime, step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut message = Vec::new();
    key(&mut message, 1, FIXED_64);
    message.extend(seconds.to_le_bytes());
    if step > 0 {
        key(&mut message, 2, VARINT);
        varint(&mut message, step);
    }
    delimited(&mut message, field, content);
    message
}

fn key(out: &mut Vec<u8>, field: u8, kind: u8) {
    out.push(field << 3 | kind);
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn delimited(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    key(out, field, DELIMITED);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// Length, checksum of the length, content, checksum of the content.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let [of_length, of_content] = [&length[..], content].map(|bytes| masked(bytes).to_le_bytes());
    [&length[..], &of_length, content, &of_content].concat()
}

/// A CRC-32C turned and shifted, so that the checksum of a record that holds checksums is not one of these.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::train::metrics::row;

    /// As TensorBoard 2.21's own `RecordWriter` writes these events.
    #[test]
    fn the_bytes_are_tensorboards() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hexadecimal(head(now)), HEAD);
        let rows = [&row(&[("loss", 0.5)]), &row(&[("a/b", 2.0), ("bad", f64::NAN)])];
        assert_eq!(hexadecimal(event(now, "sft", 300, rows)), EVENT);
    }

    const HEAD: &str = "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d";
    const EVENT: &str = "2b00000000000000861bc34b0900000040fc54d94110ac022a1d0a0f0a08\
        7366742f6c6f7373150000003f0a0a0a03612f62150000004021e52c54";
}
