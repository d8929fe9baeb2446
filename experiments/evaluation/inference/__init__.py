"""What a trained model does and costs at inference: seconds, memory, and which tokens its experts process."""
