//! Who may steer by the page: whoever knows the token.

use axum::http::{HeaderMap, StatusCode, header};
use fairway_config::announce::Secret;

use crate::secret::{described, read};

/// The shortest token, in bytes: nobody guesses that.
const SHORTEST: usize = 16;
/// Checks the token that a request carries, as `Authorization: Bearer …` (RFC 6750); refused is with a
/// status and words.
pub(super) fn admit(
    secret: Option<&Secret>,
    headers: &HeaderMap,
) -> Result<(), (StatusCode, String)> {
    let Some(secret) = secret else {
        let words = "this page changes nothing: `admin.tokenFile` is not set\n";
        return Err((StatusCode::FORBIDDEN, words.into()));
    };
    let unusable = |why: String| {
        // Where the token lies is nothing for whoever asks.
        tracing::error!("the page's token: {why}");
        (StatusCode::FORBIDDEN, "the token cannot be used; Fairway's log says why\n".into())
    };
    let wanted = usable(secret).map_err(unusable)?;
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
    if given.is_some_and(|given| is_same(given, &wanted)) {
        return Ok(());
    }
    tracing::warn!("somebody without the right token wants to steer by the page");
    Err((StatusCode::UNAUTHORIZED, "the token is not the right one\n".into()))
}

/// The token; an error says why nobody can steer by it.
fn usable(secret: &Secret) -> Result<Vec<u8>, String> {
    let token = read(secret)?;
    match token.len() < SHORTEST {
        true => Err(format!("{} has fewer than {SHORTEST} bytes", described(secret))),
        false => Ok(token),
    }
}

/// Why nobody can steer by the page, when a token is named.
pub(crate) fn trouble(secret: Option<&Secret>) -> Option<String> {
    let why = usable(secret?).err()?;
    Some(format!(
        "the page's token, as this user may read it: {why}; without it nobody steers by the page"
    ))
}

/// Compares in a time that does not tell where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_is_let_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = Secret::File(file.path().into());
        let with = |value: Option<&str>| {
            let pair = value.map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
            pair.into_iter().collect::<HeaderMap>()
        };
        let right = "Bearer 0123456789abcdef";
        let status = |secret, value| admit(secret, &with(value)).err().map(|it| it.0);
        assert_eq!(status(None, Some(right)), Some(StatusCode::FORBIDDEN));
        for (text, value, want) in [
            ("0123456789abcdef\n", Some(right), None),
            ("0123456789abcdef", Some("Bearer 0123456789abcdee"), Some(StatusCode::UNAUTHORIZED)),
            ("0123456789abcdef", Some("Basic 0123456789abcdef"), Some(StatusCode::UNAUTHORIZED)),
            ("0123456789abcdef", None, Some(StatusCode::UNAUTHORIZED)),
            // One that is too short is as if there were none.
            ("short", Some("Bearer short"), Some(StatusCode::FORBIDDEN)),
            ("", Some("Bearer "), Some(StatusCode::FORBIDDEN)),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(status(Some(&secret), value), want, "{text} {value:?}");
        }
    }
}
