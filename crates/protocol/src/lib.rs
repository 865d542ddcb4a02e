//! protocol: under construction.
