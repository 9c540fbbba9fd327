"""Model folders of hubs: configuration, weights and preprocessing, all read as data."""
