"""What a step sees: which pictures, cut and coloured at random, as a pure function of seed and iteration."""
