//! Values as text, as Go's fmt writes them: `%v` and its kin, and printf.

use crate::exec::{Context, Fault};
use crate::value::Value;

/// Go's own limit for widths and precisions.
const WIDTH_MAX: usize = 1_000_000;

pub fn show(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Nil => out.extend_from_slice(b"<nil>"),
        Value::Bool(truth) => out.extend_from_slice(truth.to_string().as_bytes()),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Float(number) => out.extend_from_slice(float_general(*number, None).as_bytes()),
        Value::Text(text) => out.extend_from_slice(text),
        Value::List(list) => {
            out.push(b'[');
            separated(out, list.items().iter(), show);
            out.push(b']');
        }
        Value::Map(map) => {
            out.extend_from_slice(b"map[");
            separated(out, map.entries().iter(), |out, (key, value)| {
                out.extend_from_slice(key.as_bytes());
                out.push(b':');
                show(out, value);
            });
            out.push(b']');
        }
        Value::Record(record) => match &record.shown_as {
            Some(value) => show(out, value),
            None => {
                out.push(b'{');
                separated(out, record.fields.iter(), |out, (_, value)| show(out, value));
                out.push(b'}');
            }
        },
        Value::Scratch(_) => {}
    }
}

fn separated<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, mut each: impl FnMut(&mut Vec<u8>, T)) {
    for (number, item) in items.enumerate() {
        if number > 0 {
            out.push(b' ');
        }
        each(out, item);
    }
}

/// `print`: a space between two that are both not text.
pub fn sprint(args: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut was_text = true;
    for (number, arg) in args.iter().enumerate() {
        let is_text = matches!(arg, Value::Text(_));
        if number > 0 && !is_text && !was_text {
            out.push(b' ');
        }
        show(&mut out, arg);
        was_text = is_text;
    }
    out
}

/// `%g`: the shortest text that gives the number back, or so many digits.
pub fn float_general(number: f64, precision: Option<usize>) -> String {
    if let Some(text) = not_finite(number) {
        return text;
    }
    let scientific = match precision {
        None => format!("{number:e}"),
        Some(digits) => format!("{number:.*e}", digits.max(1) - 1),
    };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = match precision {
        Some(_) if mantissa.contains('.') => mantissa.trim_end_matches('0').trim_end_matches('.'),
        _ => mantissa,
    };
    let digits = mantissa.chars().filter(char::is_ascii_digit).count();
    let threshold: i32 = match precision {
        // The shortest form switches where one of six digits would.
        None => 6,
        Some(wanted) => i32::try_from(wanted.max(1)).unwrap_or(i32::MAX),
    };
    if exponent < -4 || exponent >= threshold {
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let after_point = usize::try_from(i32::try_from(digits).unwrap_or(0) - 1 - exponent).unwrap_or(0);
    format!("{number:.after_point$}")
}

fn not_finite(number: f64) -> Option<String> {
    match number {
        number if number.is_nan() => Some("NaN".to_owned()),
        f64::INFINITY => Some("+Inf".to_owned()),
        f64::NEG_INFINITY => Some("-Inf".to_owned()),
        _ => None,
    }
}

fn float_scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%q`.
pub fn quote(text: &[u8], ascii: bool) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        chunk.valid().chars().for_each(|c| quote_char(&mut out, c, '"', ascii));
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out.push('"');
    out
}

fn quote_char(out: &mut String, c: char, quote: char, ascii: bool) {
    match c {
        '\\' => out.push_str("\\\\"),
        c if c == quote => out.extend(['\\', c]),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\u{b}' => out.push_str("\\v"),
        '\u{c}' => out.push_str("\\f"),
        c if u32::from(c) < 0x80 && c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        c if c.is_ascii() || (!ascii && is_printable(c)) => out.push(c),
        c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
    }
}

/// Near enough to Go's unicode.IsPrint: no controls, no spaces but the plain one, nothing private or unassigned at the ends.
pub fn is_printable(c: char) -> bool {
    let private = matches!(u32::from(c), 0xe000..=0xf8ff | 0xf0000..);
    let format =
        matches!(u32::from(c), 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xffff);
    c == ' ' || !(c.is_control() || c.is_whitespace() || private || format)
}

#[derive(Clone, Copy, Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// printf. Wrong verbs and counts show up in the text, as with Go. Argument indexes (`%[1]d`) are not built.
pub fn sprintf(context: &mut Context<'_>, format: &[u8], args: &[Value]) -> Result<Vec<u8>, Fault> {
    let text = String::from_utf8_lossy(format).into_owned();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_str();
    let mut used = 0;
    while let Some(at) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let (spec, verb, after) = read_spec(rest, args, &mut used, &mut out);
        rest = after;
        let Some(verb) = verb else {
            out.extend_from_slice(b"%!(NOVERB)");
            break;
        };
        context.make(spec.width.unwrap_or(0).max(spec.precision.unwrap_or(0)))?;
        if verb == '%' {
            out.push(b'%');
        } else if let Some(arg) = args.get(used) {
            used += 1;
            let piece = piece(&spec, verb, arg);
            context.make(piece.len() + 1)?;
            out.extend_from_slice(&piece);
        } else {
            out.extend_from_slice(format!("%!{verb}(MISSING)").as_bytes());
        }
        context.make(out.len().saturating_sub(crate::OUTPUT_BYTES_MAX))?;
    }
    out.extend_from_slice(rest.as_bytes());
    if used < args.len() {
        out.extend_from_slice(b"%!(EXTRA ");
        for (number, arg) in args[used..].iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            out.extend_from_slice(format!("{comma}{}", type_and_sign(arg)).as_bytes());
            if !matches!(arg, Value::Nil) {
                show(&mut out, arg);
            }
        }
        out.push(b')');
    }
    context.make(out.len())?;
    Ok(out)
}

fn type_and_sign(value: &Value) -> String {
    match value {
        Value::Nil => "<nil>".to_owned(),
        other => format!("{}=", other.kind()),
    }
}

fn read_spec<'a>(text: &'a str, args: &[Value], used: &mut usize, out: &mut Vec<u8>) -> (Spec, Option<char>, &'a str) {
    let mut spec = Spec::default();
    let mut rest = text;
    while let Some(flag) = rest.chars().next().filter(|c| "-+# 0".contains(*c)) {
        match flag {
            '-' => (spec.minus, spec.zero) = (true, false),
            '+' => spec.plus = true,
            '#' => spec.sharp = true,
            ' ' => spec.space = true,
            _ => spec.zero = !spec.minus,
        }
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('*') {
        rest = after;
        match star(args, used) {
            Some(width) => {
                spec.minus |= width < 0;
                spec.width = usize::try_from(width.unsigned_abs()).ok();
            }
            None => out.extend_from_slice(b"%!(BADWIDTH)"),
        }
    } else {
        (spec.width, rest) = read_number(rest);
    }
    if let Some(after) = rest.strip_prefix('.') {
        if let Some(after) = after.strip_prefix('*') {
            rest = after;
            spec.precision = star(args, used).and_then(|precision| usize::try_from(precision).ok());
            if spec.precision.is_none() {
                out.extend_from_slice(b"%!(BADPREC)");
            }
        } else {
            let (precision, after) = read_number(after);
            spec.precision = Some(precision.unwrap_or(0));
            rest = after;
        }
    }
    let verb = rest.chars().next();
    (spec, verb, verb.map_or(rest, |verb| &rest[verb.len_utf8()..]))
}

fn star(args: &[Value], used: &mut usize) -> Option<i64> {
    let number = args.get(*used).and_then(|arg| if let Value::Int(number) = arg { Some(*number) } else { None });
    *used += usize::from(*used < args.len());
    number.filter(|number| number.unsigned_abs() <= WIDTH_MAX as u64)
}

fn read_number(text: &str) -> (Option<usize>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().ok().filter(|number| *number <= WIDTH_MAX), &text[end..])
}

fn piece(spec: &Spec, verb: char, arg: &Value) -> Vec<u8> {
    // `%+v` asks for field names, not for signs.
    let named = Spec { plus: false, ..*spec };
    let spec = if verb == 'v' { &named } else { spec };
    if verb == 'T' {
        let kind = if matches!(arg, Value::Nil) { "<nil>" } else { arg.kind() };
        return pad(spec, kind.as_bytes().to_vec(), false);
    }
    match (verb, arg) {
        ('v', Value::Text(text)) if spec.sharp => pad(spec, quote(text, false).into_bytes(), false),
        ('v', Value::Int(_)) => integer(spec, 'd', arg),
        ('v', Value::Float(_)) => float(spec, 'g', arg),
        ('v' | 's', Value::Text(text)) => pad(spec, cut(spec, text), false),
        ('q', Value::Text(text)) => {
            let cut = cut(spec, text);
            let plain =
                std::str::from_utf8(&cut).is_ok_and(|text| !text.contains('`') && !text.chars().any(char::is_control));
            let quoted =
                if spec.sharp && plain { [b"`", &cut[..], b"`"].concat() } else { quote(&cut, spec.plus).into_bytes() };
            pad(spec, quoted, false)
        }
        ('x' | 'X', Value::Text(text)) => pad(spec, hex(spec, verb, text), false),
        ('d' | 'b' | 'o' | 'O' | 'x' | 'X' | 'c' | 'q' | 'U', Value::Int(_)) => integer(spec, verb, arg),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Value::Float(_)) => float(spec, verb, arg),
        ('t' | 'v', Value::Bool(truth)) => pad(spec, truth.to_string().into_bytes(), false),
        (_, Value::Nil) if verb != 'v' => format!("%!{verb}(<nil>)").into_bytes(),
        (_, Value::List(list)) => nested(spec, verb, "[", list.items().iter().map(|item| (None, item))),
        (_, Value::Map(map)) => {
            nested(spec, verb, "map[", map.entries().iter().map(|(key, value)| (Some(key.as_str()), value)))
        }
        ('v' | 's', _) => {
            let mut shown = Vec::new();
            match arg {
                Value::Int(_) | Value::Float(_) | Value::Bool(_) => return wrong(verb, arg),
                other => show(&mut shown, other),
            }
            pad(spec, shown, false)
        }
        _ => wrong(verb, arg),
    }
}

/// Each of a list's or map's elements by the same verb.
fn nested<'a>(
    spec: &Spec,
    verb: char,
    open: &str,
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
) -> Vec<u8> {
    let mut out = open.as_bytes().to_vec();
    separated(&mut out, items, |out, (key, value)| {
        if let Some(key) = key {
            out.extend_from_slice(&piece(spec, verb, &Value::text(key)));
            out.push(b':');
        }
        out.extend_from_slice(&piece(spec, verb, value));
    });
    out.push(b']');
    out
}

fn wrong(verb: char, arg: &Value) -> Vec<u8> {
    let mut out = format!("%!{verb}({}", type_and_sign(arg)).into_bytes();
    show(&mut out, arg);
    out.push(b')');
    out
}

/// The first characters, as many as the precision says.
fn cut(spec: &Spec, text: &[u8]) -> Vec<u8> {
    let Some(most) = spec.precision else { return text.to_vec() };
    let text = String::from_utf8_lossy(text);
    text.chars().take(most).collect::<String>().into_bytes()
}

fn hex(spec: &Spec, verb: char, text: &[u8]) -> Vec<u8> {
    let text = &text[..spec.precision.unwrap_or(text.len()).min(text.len())];
    let prefix = if spec.sharp { format!("0{verb}") } else { String::new() };
    let between = if spec.space { " " } else { "" };
    let digits: Vec<String> = text.iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.join(between);
    let digits = if verb == 'X' { digits.to_uppercase() } else { digits };
    format!("{prefix}{digits}").into_bytes()
}

fn integer(spec: &Spec, verb: char, arg: &Value) -> Vec<u8> {
    let Value::Int(number) = *arg else { return wrong(verb, arg) };
    let as_char = u32::try_from(number).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
    let magnitude = number.unsigned_abs();
    let digits = match verb {
        'c' => return pad(spec, as_char.to_string().into_bytes(), false),
        'q' => {
            let mut out = String::from("'");
            quote_char(&mut out, as_char, '\'', spec.plus);
            out.push('\'');
            return pad(spec, out.into_bytes(), false);
        }
        'U' => return pad(spec, format!("U+{magnitude:04X}").into_bytes(), false),
        'b' => format!("{magnitude:b}"),
        'o' | 'O' => format!("{magnitude:o}"),
        'x' => format!("{magnitude:x}"),
        'X' => format!("{magnitude:X}"),
        _ => magnitude.to_string(),
    };
    let prefix = match verb {
        'O' => "0o",
        'b' if spec.sharp => "0b",
        'o' if spec.sharp => "0",
        'x' if spec.sharp => "0x",
        'X' if spec.sharp => "0X",
        _ => "",
    };
    let least = spec.precision.unwrap_or(0);
    let digits = match spec.precision {
        Some(0) if number == 0 => String::new(),
        _ => format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len()))),
    };
    signed(spec, number < 0, prefix, digits, spec.precision.is_none())
}

fn float(spec: &Spec, verb: char, arg: &Value) -> Vec<u8> {
    let Value::Float(number) = *arg else { return wrong(verb, arg) };
    if let Some(text) = not_finite(number) {
        let text = if spec.plus { text } else { text.trim_start_matches('+').to_owned() };
        let text = if spec.plus || number.is_nan() || number < 0.0 { text } else { format!("+{text}") };
        return pad(
            &Spec { zero: false, ..Spec { width: spec.width, minus: spec.minus, ..Spec::default() } },
            text.into_bytes(),
            false,
        );
    }
    let magnitude = number.abs();
    let digits = match verb {
        'e' | 'E' => float_scientific(magnitude, spec.precision.unwrap_or(6)),
        'f' | 'F' => format!("{magnitude:.*}", spec.precision.unwrap_or(6)),
        _ => float_general(magnitude, spec.precision),
    };
    let digits = if verb.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
    signed(spec, number.is_sign_negative(), "", digits, true)
}

/// Zeroes go between sign and digits.
fn signed(spec: &Spec, negative: bool, prefix: &str, digits: String, may_fill: bool) -> Vec<u8> {
    let sign = match (negative, spec.plus, spec.space) {
        (true, ..) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    let length = sign.len() + digits.len();
    let zeroes = match spec.width {
        Some(width) if spec.zero && may_fill && !spec.minus => width.saturating_sub(length),
        _ => 0,
    };
    pad(spec, format!("{sign}{prefix}{}{digits}", "0".repeat(zeroes)).into_bytes(), true)
}

/// By characters, as Go counts.
fn pad(spec: &Spec, text: Vec<u8>, is_number: bool) -> Vec<u8> {
    let Some(width) = spec.width else { return text };
    let length = text.utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len()).sum();
    let missing = width.saturating_sub(length);
    let fill = if spec.zero && !spec.minus && !is_number { b'0' } else { b' ' };
    let padding = vec![fill; missing];
    if spec.minus { [text, padding].concat() } else { [padding, text].concat() }
}
