//! Go's literals: numbers and escapes.

use crate::lex::Token;

/// A number as Go writes constants.
pub fn literal(text: &str) -> Option<Token> {
    let unsigned = text.trim_start_matches(['+', '-']);
    if text.len() - unsigned.len() > 1 || unsigned.is_empty() || unsigned.ends_with('_') || unsigned.contains("__") {
        return None;
    }
    let negative = text.starts_with('-');
    if let Some(magnitude) = integer(unsigned) {
        let number = if negative { -magnitude } else { magnitude };
        return i64::try_from(number).ok().map(Token::Int);
    }
    let digits: String = unsigned.chars().filter(|c| *c != '_').collect();
    let plain = digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let number: f64 = digits.parse().ok().filter(|number: &f64| plain && number.is_finite())?;
    Some(Token::Float(if negative { -number } else { number }))
}

fn integer(text: &str) -> Option<i128> {
    let lower = text.to_ascii_lowercase();
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find_map(|(prefix, radix)| {
        let digits = lower.strip_prefix(prefix)?;
        Some((digits.to_owned(), radix))
    });
    let (digits, radix) = radix.unwrap_or_else(|| match lower.strip_prefix('0') {
        Some(rest) if !rest.is_empty() && rest.chars().all(|c| c.is_digit(8) || c == '_') => (rest.to_owned(), 8),
        _ => (lower.clone(), 10),
    });
    let digits: String = digits.chars().filter(|c| *c != '_').collect();
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&digits, radix).ok().filter(|number| *number <= i128::from(i64::MAX) + 1)
}

/// The body of a quoted string; `None` where Go refuses it.
pub fn unescape(body: &str, quote: char) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            return None;
        }
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        match chars.next()? {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            same if same == quote => push(&mut out, same),
            'x' => out.push(u8::try_from(digits(&mut chars, 2, 16, 0)?).ok()?),
            'u' => push(&mut out, char::from_u32(digits(&mut chars, 4, 16, 0)?)?),
            'U' => push(&mut out, char::from_u32(digits(&mut chars, 8, 16, 0)?)?),
            octal @ '0'..='7' => out.push(u8::try_from(digits(&mut chars, 2, 8, octal.to_digit(8)?)?).ok()?),
            _ => return None,
        }
    }
    Some(out)
}

fn digits(chars: &mut std::str::Chars<'_>, count: usize, radix: u32, first: u32) -> Option<u32> {
    (0..count).try_fold(first, |number, _| {
        let digit = chars.next()?.to_digit(radix)?;
        number.checked_mul(radix)?.checked_add(digit)
    })
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
