//! What `--print-capabilities` prints.

/// JSON for management layers, one line. Every feature named here is an option
/// of the command line, which a test checks.
// spec: vhost-user, "Backend program conventions"
pub fn json() -> String {
    serde_json::json!({
        "type": "block",
        "features": ["read-only", "blk-file"],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    /// The file for management layers, as it is installed.
    const INSTALLED: &str = include_str!("50-midflight.json");

    #[test]
    fn capabilities_printed_and_installed_agree() {
        let printed: serde_json::Value = serde_json::from_str(&super::json()).unwrap();
        let installed: serde_json::Value = serde_json::from_str(INSTALLED).unwrap();
        assert_eq!(printed["type"], installed["type"]);
        assert_eq!(printed["features"], installed["features"]);
        assert!(installed["binary"].as_str().unwrap().starts_with('/'));
        assert!(!installed["description"].as_str().unwrap().is_empty());
    }
}
