//! Secrets, which lie in files or among systemd's credentials and never in the document.

use std::path::PathBuf;

use fairway_config::announce::Secret;

/// Reads one as it is now; the end of its last line is not of it. An error says what is to be mended.
pub(crate) fn read(secret: &Secret) -> Result<Vec<u8>, String> {
    let path = match secret {
        Secret::File(path) => path.clone(),
        Secret::Credential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                format!(
                    "credential `{name}` is not there: the unit needs `LoadCredential={name}:…` \
                     ($CREDENTIALS_DIRECTORY is not set)"
                )
            })?;
            PathBuf::from(folder).join(name)
        }
    };
    let mut text = std::fs::read(&path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    // Editors end a file with a line's end.
    let end = text.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    text.truncate(end);
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(text)
}

/// Where it is, in words.
pub(crate) fn described(secret: &Secret) -> String {
    match secret {
        Secret::File(path) => path.display().to_string(),
        Secret::Credential(name) => format!("credential `{name}`"),
    }
}
