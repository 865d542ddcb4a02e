//! A tokenizer of a few words, for golden models whose own was never made.

/// The `tokenizer.json` of these words, from id 8 on: the first ids are the models' own special tokens.
pub(crate) fn tokenizer(words: &[&str]) -> String {
    let vocab: Vec<String> = (8..).zip(words).map(|(id, word)| format!("\"{word}\":{id}")).collect();
    format!(
        "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":null,\
         \"pre_tokenizer\":{{\"type\":\"Whitespace\"}},\"post_processor\":null,\"decoder\":null,\
         \"model\":{{\"type\":\"WordLevel\",\"vocab\":{{\"[UNK]\":7,{}}},\"unk_token\":\"[UNK]\"}}}}",
        vocab.join(",")
    )
}
