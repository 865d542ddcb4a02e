//! The values of GGUF metadata.

/// A value of the metadata.
///
/// Small integers are widened when they are read: an 8-bit or 16-bit number is a 32-bit one here.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An unsigned number of at most 32 bits.
    U32(u32),
    /// A signed number of at most 32 bits.
    I32(i32),
    /// An unsigned number of 64 bits.
    U64(u64),
    /// A signed number of 64 bits.
    I64(i64),
    /// A number with a fraction.
    F32(f32),
    /// The same with more digits.
    F64(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    String(String),
    /// A list of texts.
    Strings(Strings),
    /// A list of whole numbers.
    Integers(Vec<i32>),
    /// A list of numbers with fractions.
    Floats(Vec<f32>),
}

impl GgufValue {
    /// A whole number that is not negative, whatever its width.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U32(number) => Some((*number).into()),
            Self::I32(number) => u64::try_from(*number).ok(),
            Self::U64(number) => Some(*number),
            Self::I64(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number with a fraction, whatever its width.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            // Through its shortest decimal form: 1e-5 is to be 1e-5, and not 9.999999747378752e-6.
            Self::F32(number) => number.to_string().parse().ok(),
            Self::F64(number) => Some(*number),
            _ => None,
        }
    }
}

/// Many short texts, held as one: a vocabulary has a quarter of a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at a place.
    pub fn get(&self, at: usize) -> Option<&str> {
        let start = match at.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start..*self.ends.get(at)?)
    }

    /// All texts, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|at| self.get(at).unwrap_or_default())
    }

    /// Adds one at the end.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }
}

impl<T: AsRef<str>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut strings = Self::default();
        texts.into_iter().for_each(|text| strings.push(text.as_ref()));
        strings
    }
}
