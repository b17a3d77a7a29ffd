//! `$(VAR)` references: a known name is replaced, an unknown one left as written, `$$` is one `$`.
//! Source: Kubernetes, "Define Dependent Environment Variables".

/// Replaces the references in `text` by what `lookup` knows.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(&rest[..position]);
        rest = &rest[position + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.split_once(')') {
                Some((name, tail)) => {
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = tail;
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_a(text: &str) -> String {
        expand(text, &|name| (name == "A").then(|| "1".to_owned()))
    }

    #[test]
    fn known_names_are_replaced_and_unknown_ones_kept() {
        assert_eq!(with_a("x$(A)y$(B)z"), "x1y$(B)z");
    }

    #[test]
    fn two_dollars_escape_a_reference() {
        assert_eq!(with_a("$$(A)"), "$(A)");
        assert_eq!(with_a("$$$(A)"), "$1");
    }

    #[test]
    fn a_dollar_that_starts_no_reference_stays() {
        assert_eq!(with_a("$A $"), "$A $");
        assert_eq!(with_a("$(A"), "$(A");
    }
}
