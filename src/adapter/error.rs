//! Errors that end the daemon.

/// The operator asked for something that cannot be. One line, exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl Refusal {
    /// From anything that prints.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What the system says about an error number, without the number.
pub fn describe(errno: rustix::io::Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text.to_lowercase(),
    }
}
