//! formats: under construction.
