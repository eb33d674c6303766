//! Prompts as lists of words.

/// Whether `c` belongs inside a word. The asterisk does: `S*` is the name of a learned style token.
fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '*' || c == '_'
}

/// The words of a prompt in lower case, split at spaces and punctuation: `"A photo of the {class}, in S*."` gives
/// `a photo of the class in s*`.
pub fn words(prompt: &str) -> Vec<String> {
    prompt.to_lowercase().split(|c| !in_word(c)).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_spaces_and_punctuation() {
        assert_eq!(words("A good photo, of the  SEVEN."), ["a", "good", "photo", "of", "the", "seven"]);
        assert_eq!(words("low-res (x2)"), ["low", "res", "x2"]);
        assert!(words(" ,.").is_empty());
    }

    #[test]
    fn keeps_a_style_token_whole() {
        assert_eq!(words("the four in the style of S*."), ["the", "four", "in", "the", "style", "of", "s*"]);
    }
}
