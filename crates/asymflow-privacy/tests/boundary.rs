//! Private data: not shown, and wiped.

use std::cell::Cell;
use std::rc::Rc;

use asymflow_privacy::Private;
use zeroize::Zeroize;

#[test]
fn debug_of_private_data_shows_nothing_of_it() {
    let private = Private::new(vec![1234.5_f32]);
    assert_eq!(format!("{private:?}"), "Private(..)");
    assert_eq!(format!("{private:#?}"), "Private(..)");
}

#[test]
fn private_data_is_wiped_on_drop() {
    struct Spy(Rc<Cell<bool>>);
    impl Zeroize for Spy {
        fn zeroize(&mut self) {
            self.0.set(true);
        }
    }
    let wiped = Rc::new(Cell::new(false));
    let private = Private::new(Spy(Rc::clone(&wiped)));
    assert!(!wiped.get());
    drop(private);
    assert!(wiped.get());
}
