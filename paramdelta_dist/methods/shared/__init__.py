"""What several methods use: sums of products, ranks, thinning. No method stands here."""
