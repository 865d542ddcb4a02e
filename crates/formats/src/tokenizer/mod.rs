//! `tokenizer.json`: text to token ids and back, exactly as Hugging Face's own library does it.

mod check;

use std::ops::Range;

use tokenizers::PostProcessor as _;

/// The largest real `tokenizer.json` has 33 MB (Gemma 3).
const SIZE_LIMIT: usize = 64 << 20;

/// A tokenizer as its `tokenizer.json` describes it.
///
/// Truncation and padding written in that file are left out, as transformers leaves them out: how long a sample may be
/// is the run's choice.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// Why text could not become tokens, or tokens text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// Larger than any real one.
    #[error("tokenizer.json has {size} bytes, more than the {limit} that one may have")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The largest size allowed.
        limit: usize,
    },
    /// Not a tokenizer.
    #[error("tokenizer.json cannot be read: {reason}; is it the tokenizer.json of a Hugging Face model?")]
    Invalid {
        /// What the tokenizer library said.
        reason: String,
    },
    /// The tokenizer has no token for some of the text.
    #[error("the text cannot be made into tokens: {reason}")]
    Encode {
        /// What the tokenizer library said.
        reason: String,
    },
    /// The tokens make no text.
    #[error("the tokens cannot be made into text: {reason}")]
    Decode {
        /// What the tokenizer library said.
        reason: String,
    },
}

/// A token, and the text that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The bytes of the text that it stands for: those between the token before and its own end, so that spaces which
    /// some tokenizers leave out of a token's span are counted to it. `None` for a token that the post-processor added.
    pub span: Option<Range<usize>>,
}

/// One or two texts as an encoder reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Which text each is of, as the post-processor says.
    pub type_ids: Vec<u32>,
    /// How many tokens of the texts were cut off.
    pub cut: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// Bounded are its size (64 MB), tokens and merges (2 million each), ids (below 2^24), added tokens (65,536), the nesting,
    /// number and growth of the parts that change text, and the shape of their patterns; what these parts refer to is there.
    ///
    /// # Errors
    ///
    /// When it is too large, broken, or outside of these bounds.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.len() > SIZE_LIMIT {
            return Err(TokenizerError::TooLarge { size: json.len(), limit: SIZE_LIMIT });
        }
        check::check(json).map_err(|reason| TokenizerError::Invalid { reason })?;
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid { reason: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(invalid)?;
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        Ok(Self { inner })
    }

    /// The tokens of `text`, with the special ones that the tokenizer's own post-processor adds.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    /// The tokens of `text` alone.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    /// The tokens that [`Tokenizer::encode`] gives, with the text that each stands for.
    pub fn encode_spans(&self, text: &str) -> Result<Vec<Token>, TokenizerError> {
        self.spans_with(text, true)
    }

    /// The tokens that [`Tokenizer::encode_plain`] gives, with the text that each stands for.
    pub fn encode_spans_plain(&self, text: &str) -> Result<Vec<Token>, TokenizerError> {
        self.spans_with(text, false)
    }

    /// The tokens of a text, or of two beside each other, framed by the special tokens of the tokenizer's post-processor
    /// (`[CLS] a [SEP] b [SEP]`). What does not fit into `limit` tokens is cut off the end of the text, or of the longer
    /// one, as transformers does (`longest_first`); the frame stays.
    pub fn encode_framed(
        &self,
        first: &str,
        second: Option<&str>,
        limit: usize,
    ) -> Result<Framed, TokenizerError> {
        let frame = self.inner.get_post_processor().map_or(0, |frame| frame.added_tokens(second.is_some()));
        let encode = |text: &str| self.inner.encode_fast(text, false).map_err(|error| encode_error(&error));
        let mut first = encode(first)?;
        let mut second = second.map(encode).transpose()?;
        let room = limit.saturating_sub(frame);
        let (len, other) = (first.len(), second.as_ref().map_or(0, tokenizers::Encoding::len));
        // The shorter one keeps up to half of the room; of two that are longer, the longer one keeps the odd token, or the
        // second where they are equal.
        let half = if len > other { room.div_ceil(2) } else { room / 2 };
        let keep = len.min(room.saturating_sub(other).max(half));
        let keep_other = other.min(room.saturating_sub(keep));
        if keep < len {
            first.truncate(keep, 0, tokenizers::TruncationDirection::Right);
        }
        if let Some(second) = second.as_mut().filter(|_| keep_other < other) {
            second.truncate(keep_other, 0, tokenizers::TruncationDirection::Right);
        }
        let framed = self.inner.post_process(first, second, true).map_err(|error| encode_error(&error))?;
        Ok(Framed {
            ids: framed.get_ids().to_vec(),
            type_ids: framed.get_type_ids().to_vec(),
            cut: len - keep + other - keep_other,
        })
    }

    fn spans_with(&self, text: &str, special: bool) -> Result<Vec<Token>, TokenizerError> {
        let encoding = self.inner.encode(text, special).map_err(|error| encode_error(&error))?;
        let special = encoding.get_special_tokens_mask();
        let mut reached = 0;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(special);
        Ok(tokens
            .map(|((id, (start, end)), special)| {
                let span = (*special == 0).then(|| {
                    let span = reached.min(*start)..reached.max(*end);
                    reached = span.end;
                    span
                });
                Token { id: *id, span }
            })
            .collect())
    }

    /// The text of `ids`; `skip_special` leaves out tokens such as `<s>`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|error| TokenizerError::Decode { reason: error.to_string() })
    }

    /// How many tokens there are without those added beside the vocabulary.
    pub fn base_vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its text, as in `<s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, special).map_err(|error| encode_error(&error))?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn encode_error(error: &tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_tokenizer_is_refused() {
        for bytes in [&b""[..], b"null", b"{}", b"\xff", br#"{"version": "1.0", "model": {"type": "New"}}"#] {
            assert!(matches!(Tokenizer::from_bytes(bytes), Err(TokenizerError::Invalid { .. })));
        }
        let huge = vec![b' '; SIZE_LIMIT + 1];
        let error = Tokenizer::from_bytes(&huge).unwrap_err();
        assert_eq!(error, TokenizerError::TooLarge { size: SIZE_LIMIT + 1, limit: SIZE_LIMIT });
    }
}
