//! Nomad's flags have one dash (`-json`, `-address=…`); ours are read as either.

/// Turns `-word` into `--word`, and leaves single letters, numbers and everything behind `--` alone.
pub fn normalise(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut verbatim = false;
    let mut read = |argument: String| {
        verbatim |= argument == "--";
        if !verbatim && is_long_with_one_dash(&argument) { format!("-{argument}") } else { argument }
    };
    arguments.into_iter().map(&mut read).collect()
}

fn is_long_with_one_dash(argument: &str) -> bool {
    let Some(name) = argument.strip_prefix('-') else { return false };
    let name = name.split('=').next().unwrap_or_default();
    name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[&str], read: &[&str]) {
        assert_eq!(normalise(given.iter().map(|word| (*word).to_owned())), read);
    }

    #[test]
    fn long_flags_may_have_one_dash_or_two() {
        check(&["meshctl", "job", "status", "-json"], &["meshctl", "job", "status", "--json"]);
        check(&["-address=http://a:1", "--json"], &["--address=http://a:1", "--json"]);
    }

    #[test]
    fn letters_numbers_and_what_follows_two_dashes_stay() {
        check(&["-f", "-n", "5", "-1x", "-"], &["-f", "-n", "5", "-1x", "-"]);
        check(&["exec", "--", "ls", "-lah"], &["exec", "--", "ls", "-lah"]);
    }
}
