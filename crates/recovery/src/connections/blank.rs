//! Statements without the values in them, which may be secrets or about people.

/// So much of a statement is kept.
const LONGEST: usize = 200;

/// The statement with `?` for each text and number, without comments, in one line.
///
/// The server cuts long statements off, so that a text may lack its end.
pub(super) fn blank(statement: &str) -> String {
    let mut out = String::new();
    let mut rest = statement;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        if out.chars().count() >= LONGEST {
            out.push('…');
            return out;
        }
        let (kept, length) = piece(rest, next, before);
        let space = kept == " ";
        if !space || !(out.is_empty() || out.ends_with(' ')) {
            out.push_str(kept);
        }
        before = kept.chars().last().unwrap_or(before);
        rest = rest.get(length..).unwrap_or_default();
    }
    out.truncate(out.trim_end().len());
    out
}

/// What is kept of the beginning of `rest`, and how much of it that stands for.
fn piece(rest: &str, next: char, before: char) -> (&str, usize) {
    let in_word = before.is_alphanumeric() || before == '_';
    let all = rest.len();
    let until = |end: &str| rest.find(end).map_or(all, |at| at + end.len());
    match next {
        _ if next.is_whitespace() => (" ", next.len_utf8()),
        '\'' => ("?", text(rest, in_word && matches!(before, 'e' | 'E'))),
        '"' => {
            let length = quoted(rest, '"', false);
            (rest.get(..length).unwrap_or(rest), length)
        }
        '-' if rest.starts_with("--") => (" ", until("\n")),
        '/' if rest.starts_with("/*") => (" ", until("*/")),
        '$' if !in_word => match tag(rest) {
            Some(tag) => {
                let body = rest.get(tag.len()..).unwrap_or_default();
                ("?", body.find(tag).map_or(all, |at| tag.len() + at + tag.len()))
            }
            // The number of a parameter.
            None => ("$", 1),
        },
        _ if next.is_ascii_digit() && !in_word && before != '$' => {
            let plain = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_');
            ("?", rest.find(plain).unwrap_or(all))
        }
        _ => {
            let length = next.len_utf8();
            (rest.get(..length).unwrap_or(rest), length)
        }
    }
}

/// How long the text in single quotes is. Without word of `standard_conforming_strings`, a
/// backslash escapes only in texts that say so; what that gets wrong is a longer text.
fn text(rest: &str, escapes: bool) -> usize {
    quoted(rest, '\'', escapes)
}

/// How long what stands in such quotes is, at the beginning of `rest`. A doubled quote is one of
/// the text.
fn quoted(rest: &str, quote: char, escapes: bool) -> usize {
    let mut letters = rest.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if escapes && letter == '\\' {
            letters.next();
        } else if letter == quote {
            if letters.peek().is_some_and(|(_, next)| *next == quote) {
                letters.next();
            } else {
                return at + quote.len_utf8();
            }
        }
    }
    rest.len()
}

/// `$tag$` at the beginning.
fn tag(rest: &str) -> Option<&str> {
    let inner = rest.get(1..)?;
    let end = inner.find('$')?;
    let name = inner.get(..end)?;
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    let is_name = name.chars().all(letter) && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_name { rest.get(..end + 2) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_and_numbers_are_left_out() {
        for (statement, kept) in [
            ("ALTER ROLE me PASSWORD 'it''s secret'", "ALTER ROLE me PASSWORD ?"),
            (r"SELECT E'a\'b', 'c\', 4.5e3, t1.c2 FROM t1", "SELECT E?, ?, ?, t1.c2 FROM t1"),
            ("SELECT $1, $$secret$$, $a$ $$ $a$;", "SELECT $1, ?, ?;"),
            ("SELECT \"a'b\" -- secret\n FROM\t/* secret */ x", "SELECT \"a'b\" FROM x"),
            ("INSERT INTO t VALUES ('cut off here", "INSERT INTO t VALUES (?"),
            ("SELECT $tag$ cut off", "SELECT ?"),
            ("/* cut off", ""),
        ] {
            assert_eq!(blank(statement), kept, "{statement}");
        }
        assert!(blank(&"x ".repeat(1000)).chars().count() <= LONGEST + 1);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_quotes_is_never_kept(
            before in "[a-z ,=()]{0,20}",
            secret in "[A-Z]{6}[a-zA-Z0-9 \"$/*-]{0,20}",
            after in "\\PC{0,30}",
        ) {
            let quoted = format!("{before} '{secret}' {after}");
            prop_assume!(!after.contains(&secret[..6]));
            prop_assert!(!blank(&quoted).contains(&secret[..6]), "{}", blank(&quoted));
        }

        #[test]
        fn any_text_is_survived(statement in "\\PC{0,80}|[-'\"$/*a1\\\\ \n]{0,60}") {
            blank(&statement);
        }
    }
}
