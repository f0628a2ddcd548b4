"""One folder per paper family; a method never knows another."""
