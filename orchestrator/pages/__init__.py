"""Pages and pictures for people: the frame of a page, its charts, and boxes on images."""
