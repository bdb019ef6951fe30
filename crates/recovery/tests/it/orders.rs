//! Orders wait in the journal until a controller takes them.

use resurgam_model::{ComponentName, Scenario, Timestamp};
use resurgam_recovery::journal::orders::{Order, Ordered};

use crate::fakes::journal;

fn ordered(order: Order) -> Ordered {
    Ordered { by: "ada".to_owned(), order }
}

#[test]
fn orders_are_taken_once_in_their_order_also_by_the_next_controller() {
    let dir = tempfile::tempdir().unwrap();
    let writer = journal(dir.path());
    let pool = ComponentName::new("worker-pool").unwrap();
    let first = ordered(Order::Scale { pool, size: 5 });
    let second = ordered(Order::Recover { scenario: Scenario::Api, component: None, ask: None });
    let one = writer.order(&first, Timestamp::now()).unwrap();
    let two = writer.order(&second, Timestamp::now()).unwrap();

    let reader = journal(dir.path());
    assert_eq!(reader.open_orders().unwrap(), [(one, first), (two, second.clone())]);
    reader.orders_done(one).unwrap();
    drop(reader);
    let next = journal(dir.path());
    assert_eq!(next.open_orders().unwrap(), [(two, second)]);
    next.orders_done(two).unwrap();
    assert!(next.open_orders().unwrap().is_empty());
    assert!(next.verify(None).unwrap().findings.is_empty(), "orders stay in the chain");
}
