//! A walker over Thrift's compact protocol, in which Parquet writes its footer and page headers. It builds nothing: it
//! steps through the bytes so that `parquet.rs` can check declared sizes before the decoder allocates by them.
//! Source: the Thrift compact protocol specification (fields, varints, zig-zag, lists).

/// How deep structures may nest; Parquet's own need fewer than ten levels.
const DEPTH_MAX: usize = 24;

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The bytes end before the structure does.
    Short,
    /// This is not the protocol.
    Bad,
}

/// What a walk returns.
pub(super) type Step<T> = Result<T, Broken>;

/// The type of a value, as the protocol numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    Integer,
    Double,
    Bytes,
    List,
    Map,
    Struct,
}

impl Kind {
    fn from_nibble(nibble: u8) -> Step<Self> {
        Ok(match nibble {
            1 => Self::True,
            2 => Self::False,
            3 => Self::Byte,
            4..=6 => Self::Integer,
            7 => Self::Double,
            8 => Self::Bytes,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            _ => return Err(Broken::Bad),
        })
    }
}

/// The type that a field has where its number is known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A truth value, which lies in the field's own header.
    Truth,
    Byte,
    Integer,
    Double,
    Bytes,
    List(&'static Shape),
    /// The fields that are known, by their numbers; others may be there.
    Struct(&'static [(i64, Shape)]),
}

impl Shape {
    fn fits(&self, kind: Kind) -> bool {
        match self {
            Self::Truth => matches!(kind, Kind::True | Kind::False),
            Self::Byte => kind == Kind::Byte,
            Self::Integer => kind == Kind::Integer,
            Self::Double => kind == Kind::Double,
            Self::Bytes => kind == Kind::Bytes,
            Self::List(_) => kind == Kind::List,
            Self::Struct(_) => kind == Kind::Struct,
        }
    }
}

/// A position in bytes of the compact protocol.
pub(super) struct Compact<'a> {
    rest: &'a [u8],
}

impl<'a> Compact<'a> {
    /// Begins at the first byte.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn byte(&mut self) -> Step<u8> {
        let (first, rest) = self.rest.split_first().ok_or(Broken::Short)?;
        self.rest = rest;
        Ok(*first)
    }

    fn advance(&mut self, n: usize) -> Step<()> {
        self.rest = self.rest.get(n..).ok_or(Broken::Short)?;
        Ok(())
    }

    fn varint(&mut self) -> Step<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken::Bad)
    }

    /// A signed integer of any width.
    pub(super) fn integer(&mut self) -> Step<i64> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The header of a list: the type of its elements and how many there are, at most one for each byte left.
    pub(super) fn list(&mut self) -> Step<(Kind, usize)> {
        let header = self.byte()?;
        if header == 0 {
            return Ok((Kind::Byte, 0));
        }
        let size = match header >> 4 {
            15 => usize::try_from(self.varint()?).map_err(|_| Broken::Bad)?,
            size => usize::from(size),
        };
        if size > self.left() {
            return Err(Broken::Short);
        }
        Ok((Kind::from_nibble(header & 15)?, size))
    }

    /// Visits the fields of a structure whose `known` ones have these types, however deep. `visit` gets each field's
    /// number and type and returns whether it read the value; what it did not read is stepped over.
    pub(super) fn fields(
        &mut self,
        known: &'static [(i64, Shape)],
        mut visit: impl FnMut(&mut Self, i64, Kind) -> Step<bool>,
    ) -> Step<()> {
        self.fields_at(0, known, &mut visit)
    }

    fn fields_at(
        &mut self,
        depth: usize,
        known: &'static [(i64, Shape)],
        visit: &mut dyn FnMut(&mut Self, i64, Kind) -> Step<bool>,
    ) -> Step<()> {
        let mut id = 0;
        loop {
            let header = self.byte()?;
            if header & 15 == 0 {
                return Ok(());
            }
            id = if header >> 4 == 0 { self.integer()? } else { id + i64::from(header >> 4) };
            // The decoder keeps 16 bits of a number: a larger one would be another field to it.
            if i16::try_from(id).is_err() {
                return Err(Broken::Bad);
            }
            let kind = Kind::from_nibble(header & 15)?;
            let shape = known.iter().find(|(number, _)| *number == id).map(|(_, shape)| shape);
            if shape.is_some_and(|shape| !shape.fits(kind)) {
                return Err(Broken::Bad);
            }
            if !visit(self, id, kind)? {
                self.skip(kind, shape, depth)?;
            }
        }
    }

    fn skip(&mut self, kind: Kind, shape: Option<&Shape>, depth: usize) -> Step<()> {
        if depth > DEPTH_MAX {
            return Err(Broken::Bad);
        }
        match kind {
            Kind::True | Kind::False => Ok(()),
            Kind::Byte => self.advance(1),
            Kind::Integer => self.varint().map(|_| ()),
            Kind::Double => self.advance(8),
            Kind::Bytes => {
                let size = self.varint()?;
                self.advance(usize::try_from(size).map_err(|_| Broken::Bad)?)
            }
            Kind::List => {
                let (element, size) = self.list()?;
                // A truth value has no byte of its own as a field, but one as an element. The decoder takes it for none
                // there too: it would step over two thousand million of them, and then read other fields than we do.
                // Parquet's metadata has no such list.
                if matches!(element, Kind::True | Kind::False) && size > 0 {
                    return Err(Broken::Bad);
                }
                let inner = if let Some(Shape::List(inner)) = shape { Some(*inner) } else { None };
                if size > 0 && inner.is_some_and(|inner| !inner.fits(element)) {
                    return Err(Broken::Bad);
                }
                (0..size).try_for_each(|_| self.skip(element, inner, depth + 1))
            }
            Kind::Struct => {
                let known = if let Some(Shape::Struct(known)) = shape { *known } else { &[] };
                self.fields_at(depth + 1, known, &mut |_, _, _| Ok(false))
            }
            // Parquet has no maps in its metadata.
            Kind::Map => Err(Broken::Bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_type_are_read_or_stepped_over() {
        // 1: i32 -3; 2: binary "ab"; 3: list of two bytes; 4: struct { 1: true }; 20: i64 300
        let bytes = [0x15, 0x05, 0x18, 2, b'a', b'b', 0x19, 0x23, 1, 2, 0x1c, 0x11, 0, 0x06, 40, 0xd8, 0x04, 0];
        let mut found = Vec::new();
        let mut walk = Compact::new(&bytes);
        let visit = |walk: &mut Compact, id, kind| {
            let is_integer = kind == Kind::Integer;
            if is_integer {
                found.push((id, walk.integer()?));
            }
            Ok(is_integer)
        };
        assert_eq!(walk.fields(&[], visit), Ok(()));
        assert_eq!((found, walk.left()), (vec![(1, -3), (20, 300)], 0));
    }

    #[test]
    fn hostile_bytes_end_the_walk() {
        let walk = |bytes: &[u8]| Compact::new(bytes).fields(&[], |_, _, _| Ok(false));
        assert_eq!(walk(&[0x15]), Err(Broken::Short));
        assert_eq!(walk(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Err(Broken::Bad));
        assert_eq!(walk(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Broken::Short));
        assert_eq!(walk(&[0x19, 0xf1, 0xff, 0xff, 0xff, 0x7f, 0]), Err(Broken::Short));
        assert_eq!(walk(&[0x19, 0x21, 1, 2, 0]), Err(Broken::Bad));
        assert_eq!(walk(&vec![0x1c; 100_000]), Err(Broken::Bad));
        assert_eq!(walk(&vec![0x19; 100_000]), Err(Broken::Bad));
    }

    #[test]
    fn a_known_field_has_its_type() {
        static KNOWN: &[(i64, Shape)] = &[(1, Shape::Integer), (2, Shape::List(&Shape::Struct(&[(1, Shape::Bytes)])))];
        let walk = |bytes: &[u8]| Compact::new(bytes).fields(KNOWN, |_, _, _| Ok(false));
        // 1: i32 -3; 2: list of a struct { 1: binary "a" }; 3: a double, of which nothing is known.
        assert_eq!(walk(&[0x15, 5, 0x19, 0x1c, 0x18, 1, b'a', 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(()));
        assert_eq!(walk(&[0x29, 0, 0]), Ok(()), "an empty list, as some writers write it");
        assert_eq!(walk(&[0x18, 0, 0]), Err(Broken::Bad), "bytes for an integer");
        assert_eq!(walk(&[0x29, 0x15, 0, 0]), Err(Broken::Bad), "integers for structures");
        assert_eq!(walk(&[0x29, 0x1c, 0x15, 0, 0, 0]), Err(Broken::Bad), "an integer for bytes, within");
        // Field 65537 is field 1 to a reader that keeps 16 bits.
        assert_eq!(walk(&[0x08, 0x82, 0x80, 0x08, 0, 0]), Err(Broken::Bad));
    }
}
