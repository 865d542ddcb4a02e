//! Under construction.

/// What a connection between two peers carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Control and heartbeats, between the host and each peer.
    Control,
    /// Boundaries, states and files.
    Bulk,
}
