//! plan: under construction.
