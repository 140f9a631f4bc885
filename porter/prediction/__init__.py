"""What a port says of photos: classes, masks, boxes."""
