//! transport: under construction.
