use super::*;

#[test]
fn network_order_is_kept_in_memory() {
    assert_eq!(Be16::new(0x1f90).to_bytes(), [0x1f, 0x90]);
    assert_eq!(Be32::from(core::net::Ipv4Addr::new(10, 43, 0, 1)).to_bytes(), [10, 43, 0, 1]);
    assert_eq!(Be32::from_bytes([10, 43, 0, 1]).get(), 0x0a2b_0001);
}

#[test]
fn sizes_are_what_the_cost_table_was_measured_with() {
    assert_eq!(size_of::<VipKey>(), 8);
    assert_eq!(size_of::<VipValue>(), 8);
    assert_eq!(size_of::<Backend>(), 16);
    assert_eq!(size_of::<Bucket>(), 64);
    const { assert!(maps::BACKENDS_MAX <= 1 << 16, "a way holds 16 bits of a backend's id") };
    assert!(maps::FLOW_BUCKETS.is_power_of_two() && maps::ENTRY_BUCKETS.is_power_of_two());
    assert!(maps::ALIAS_HINTS_MAX.is_power_of_two() && maps::NEAR_ENDPOINTS_MAX == 256);
    assert_eq!(size_of::<FlowBucket>(), 128, "two cache lines");
    assert_eq!(core::mem::offset_of!(FlowBucket, dialled), 64, "what is searched fits the first one");
    assert_eq!(core::mem::offset_of!(FlowBucket, pad), 120);
}

#[test]
fn ring_head_keeps_its_three_parts() {
    let head = RingHead::new(0xdead_beef, 3, 0x01ff_ffff);
    assert_eq!((head.base(), head.class(), head.generation()), (0xdead_beef, 3, 0x00ff_ffff));
    assert_eq!(RingHead::from_word(head.word()), head);
}

#[test]
fn slots_stay_inside_their_slab() {
    for class in 1..SLAB_SIZES.len() as u8 {
        let head = RingHead::new(1000, class, 1);
        assert_eq!(head.slot(0), 1000);
        assert_eq!(head.slot(u32::MAX), 1000 + SLAB_SIZES[class as usize] - 1);
    }
    assert_eq!(RingHead::EMPTY.size(), 0);
    assert_eq!(slab_size(SLAB_SIZES.len() as u8), 0);
}

#[test]
fn slab_classes_grow_with_backends() {
    let cases = [(0, 0), (1, 1), (5, 1), (6, 2), (20, 2), (21, 3), (81, 3), (82, 4), (327, 4), (328, 5), (65_000, 5)];
    for (backends, class) in cases {
        assert_eq!(slab_class_for(backends), class, "{backends} backends");
    }
}

#[test]
fn blocks_are_cut_at_26_bits() {
    assert_eq!(block_of(Be32::from_bytes([10, 64, 0, 127])), Be32::from_bytes([10, 64, 0, 64]));
}

#[test]
fn reasons_fit_their_map_and_have_their_own_names() {
    for (i, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, i);
        assert!((i as u32) < maps::REASONS_MAX);
        assert!(Reason::ALL[..i].iter().all(|other| other.name() != reason.name()));
    }
}

#[test]
fn layout_hash_covers_every_map_and_type() {
    for name in maps::NAMES {
        assert!(LAYOUT.iter().any(|part| part.contains(name)));
    }
    assert!(LAYOUT[0].contains("VipKey{addr:Be32;port:Be16;"));
    assert_ne!(fnv(LAYOUT), fnv(&LAYOUT[1..]));
}

#[test]
fn slab_size_and_its_text_agree() {
    let mut rest = ring::SIZES_TEXT.trim_start_matches("slabs=");
    for (class, size) in SLAB_SIZES.iter().enumerate() {
        assert_eq!(slab_size(class as u8), *size);
        let (head, tail) = rest.split_once(',').unwrap_or((rest, ""));
        assert_eq!(head.parse(), Ok(*size));
        rest = tail;
    }
}

#[test]
fn a_stamp_keeps_time_and_state_and_time_goes_round() {
    let stamp = Stamp::new(Stamp::time(0x1_0000_0000 - 256), FLOW_UDP);
    assert_eq!((stamp.seen(), stamp.state()), (0x00ff_ffff, FLOW_UDP));
    assert_eq!(stamp.idle(Stamp::time(0x1_0000_0000 + 1024)), 5);
    assert_eq!(Stamp::from_word(stamp.word()), stamp);
}

#[test]
fn ends_of_a_flow_are_one_word() {
    let addr = Be32::from_bytes;
    let key = FlowKey {
        client: addr([1, 2, 3, 4]),
        backend: addr([9, 9, 9, 9]),
        client_port: Be16::new(0x0506),
        backend_port: Be16::new(0x0708),
        proto: PROTO_TCP,
        pad: [0; 3],
    };
    assert_eq!(key.ends(), 0x0102_0304_0506_0708);
}
