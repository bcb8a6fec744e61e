//! Who gets in: service tokens and admin tokens, and the domains they are bound to.

mod tokens;
