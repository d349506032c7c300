//! What goes wrong is the right error.
