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

/// What is wrong with the braces of a template that has only these places, for example `class` for `{class}`.
pub fn bad_place(template: &str, places: &[&str]) -> Option<String> {
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let inner = rest[at..].strip_prefix('{').and_then(|tail| tail.split_once('}'));
        let Some((name, tail)) = inner else {
            return Some(format!("`{template}` has a brace without its other half"));
        };
        if !places.contains(&name) {
            let known = places.iter().map(|place| format!("{{{place}}}")).collect::<Vec<_>>();
            let are = if known.len() == 1 { "is" } else { "are" };
            return Some(format!("`{template}` has {{{name}}}: only {} {are} filled in", known.join(" and ")));
        }
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_nothing_fills_in_are_found() {
        assert_eq!(bad_place("A {style} {class}", &["class", "style"]), None);
        let says = |template: &str| bad_place(template, &["class"]).unwrap_or_default();
        assert_eq!(says("A {style} {class}"), "`A {style} {class}` has {style}: only {class} is filled in");
        assert!(says("A {class").contains("a brace without"));
        assert!(says("A class}").contains("a brace without"));
    }

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
