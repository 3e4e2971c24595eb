"""The words of the simulated shop: what its items are called, how its customers search and write.

Titles and descriptions name style and category in several ways, so that a text model can tell both;
messages are templates with a known intent and sentiment, so that a classifier's right answer is known.
"""

from __future__ import annotations

# style -> (word of the title, words that descriptions and searches use)
STYLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "rustic": ("Rustic", ("farmhouse", "weathered", "reclaimed wood")),
    "nordic": ("Nordic", ("scandinavian", "hygge", "pale birch")),
    "vintage": ("Vintage", ("retro", "antique look", "nostalgic")),
    "floral": ("Floral", ("flowery", "botanical print", "roses")),
    "industrial": ("Industrial", ("raw steel", "loft", "exposed bolts")),
    "tropical": ("Tropical", ("palm leaf", "bright summer", "flamingo")),
    "gothic": ("Gothic", ("dark velvet", "ravens", "ornate black")),
    "minimal": ("Minimalist", ("plain white", "clean lines", "understated")),
    "nautical": ("Nautical", ("sailor stripes", "anchor", "seaside")),
    "royal": ("Royal", ("gold trim", "luxurious", "palace")),
    "playful": ("Playful", ("for children", "cartoon animals", "rainbow")),
    "zen": ("Zen", ("bamboo", "calm", "japanese garden")),
}

# category -> (nouns, a word that searches use, middle base price, price elasticity, bought again?)
CATEGORIES: dict[str, tuple[tuple[str, ...], str, float, float, bool]] = {
    "lighting": (("Table Lamp", "Lantern", "Pendant Light"), "lamp", 34.0, 1.6, False),
    "tableware": (("Dinner Plate", "Cereal Bowl", "Serving Tray"), "dishes", 12.0, 1.3, False),
    "coffee": (("Coffee Beans", "Ground Espresso", "Filter Roast"), "coffee", 9.0, 0.7, True),
    "tea": (("Green Tea", "Herbal Infusion", "Breakfast Tea"), "tea", 6.0, 0.8, True),
    "candles": (("Scented Candle", "Pillar Candle", "Tea Lights"), "candle", 8.0, 1.2, True),
    "soap": (("Hand Soap", "Bath Bar", "Shower Gel"), "soap", 5.0, 0.9, True),
    "stationery": (("Notebook", "Wrapping Paper", "Greeting Cards"), "paper", 4.0, 1.1, True),
    "cushions": (("Cushion", "Throw Blanket", "Seat Pad"), "pillow", 19.0, 1.8, False),
    "wallart": (("Wall Clock", "Framed Print", "Mirror"), "wall decoration", 27.0, 2.0, False),
    "garden": (("Plant Pot", "Bird Feeder", "Watering Can"), "garden", 15.0, 1.7, False),
    "bags": (("Tote Bag", "Backpack", "Lunch Bag"), "bag", 17.0, 1.9, False),
    "jewellery": (("Necklace", "Bracelet", "Earrings"), "jewellery", 22.0, 2.4, False),
    "snacks": (("Chocolate Box", "Shortbread", "Nut Mix"), "sweets", 5.0, 1.0, True),
    "petcare": (("Dog Treats", "Cat Litter", "Pet Shampoo"), "pet", 10.0, 0.6, True),
    "kitchen": (("Apron", "Chopping Board", "Storage Jar"), "kitchen", 14.0, 1.5, False),
    "toys": (("Puzzle", "Plush Toy", "Building Blocks"), "toy", 16.0, 1.8, False),
}

BRANDS = (
    "Halden",
    "Marlowe",
    "Tamsin",
    "Brightwater",
    "Oakley Lane",
    "Solveig",
    "Penrose",
    "Larkhill",
    "Ambrose",
    "Finch & Co",
    "Corvane",
    "Juniper Row",
    "Eastmoor",
    "Vesper",
    "Quillon",
    "Thistledown",
)

COLOURS = (
    "Amber",
    "Blush",
    "Charcoal",
    "Cobalt",
    "Coral",
    "Cream",
    "Emerald",
    "Fawn",
    "Indigo",
    "Ivory",
    "Jade",
    "Lilac",
    "Maroon",
    "Mint",
    "Mustard",
    "Navy",
    "Ochre",
    "Pearl",
    "Plum",
    "Ruby",
    "Sage",
    "Sand",
    "Teal",
    "Umber",
)

# intent -> (sentiment, templates; {item} is an item's title, {n} an order number)
MESSAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "where_is_my_order": (
        "neutral",
        (
            "Where is my order {n}? The tracking page shows nothing new.",
            "Could you tell me when order {n} with the {item} will arrive?",
        ),
    ),
    "late_delivery": (
        "negative",
        (
            "Order {n} is a week late and nobody answers. Very disappointed.",
            "My {item} should have been here on Monday. This is too slow!",
        ),
    ),
    "damaged_item": (
        "negative",
        (
            "The {item} arrived broken, the box was crushed.",
            "Unpacked order {n}: the {item} is cracked. I am not happy.",
        ),
    ),
    "refund_request": (
        "negative",
        (
            "I want my money back for order {n}, please refund it.",
            "I sent back the {item} and still have no refund. What is going on?",
        ),
    ),
    "return_item": (
        "neutral",
        (
            "How do I return the {item}? It does not fit my room.",
            "I would like to send back order {n}, which label do I use?",
        ),
    ),
    "cancel_order": (
        "neutral",
        (
            "Please cancel order {n}, I ordered twice by mistake.",
            "Can I still cancel the {item} before it ships?",
        ),
    ),
    "change_address": (
        "neutral",
        (
            "I moved, please send order {n} to my new address.",
            "How can I change the delivery address for the {item}?",
        ),
    ),
    "payment_failed": (
        "negative",
        (
            "My card was charged but order {n} says payment failed.",
            "Checkout refuses my card for the {item}, again and again.",
        ),
    ),
    "back_in_stock": (
        "neutral",
        (
            "When will the {item} be back in stock?",
            "The {item} is sold out, will you get more of it?",
        ),
    ),
    "product_question": (
        "neutral",
        (
            "Is the {item} dishwasher safe?",
            "What are the measurements of the {item}?",
        ),
    ),
    "praise": (
        "positive",
        (
            "I love my {item}, thank you so much!",
            "Order {n} came early and everything is perfect. Great shop!",
        ),
    ),
    "discount": (
        "neutral",
        (
            "Does my discount code work for the {item}?",
            "Is there a sale coming for the {item}?",
        ),
    ),
}

# what nobody wrote about before the streamed hours: the shop has begun to sell gift cards
LATER_MESSAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gift_card": (
        "neutral",
        (
            "How long is a gift card valid?",
            "Can I use two gift cards for the {item}?",
            "I bought a gift card, where do I find its number?",
            "Does a gift card count for shipping as well?",
        ),
    ),
}

# what people say beside the point, in the words of the intents above
ASIDES: tuple[str, ...] = (
    "I have ordered from you three times before.",
    "The refund for my last return came within a day, thanks for that.",
    "My previous parcel was a week late, but that is forgotten.",
    "I paid by card, as always.",
    "It was a present for my sister, who has just moved to a new address.",
    "I could not find the answer on the product page.",
    "A friend wanted the {item} too, but it was sold out.",
    "I first thought of cancelling, then kept it.",
    "The discount code worked without trouble.",
    "Nothing was broken, the packaging was perfect.",
    "The tracking page is really useful.",
    "I am a little disappointed, but it is not urgent.",
    "Otherwise I am very happy with your shop.",
    "Please answer by mail, I am hard to reach by phone.",
    "The measurements of my room have nothing to do with it.",
)

# intent -> the answer that the shop's clerks give
ANSWERS: dict[str, str] = {
    "where_is_my_order": "Your parcel is with the carrier; the tracking page is updated each evening.",
    "late_delivery": "We are sorry for the wait. We have asked the carrier and write to you within a day.",
    "damaged_item": "We are sorry. Keep the parcel, send us a picture, and we ship a new one at once.",
    "refund_request": "Your refund is made to the card that you paid with within five days of the return.",
    "return_item": "Print the label from your account, put the item into its box and hand it to any parcel shop.",
    "cancel_order": "An order can be cancelled in your account until it has shipped.",
    "change_address": "Change the address in your account; parcels that are on their way cannot be redirected.",
    "payment_failed": "Nothing was charged: a reserved amount is released within three days. Please try again.",
    "back_in_stock": "Leave your address on the product's page and we write as soon as it is back.",
    "product_question": "Material, care and measurements stand on the product's page under Details.",
    "praise": "Thank you, we are glad that you like it!",
    "discount": "Enter the code in the basket; it does not add up with items on sale.",
    "gift_card": "A gift card is valid for three years; its number is in the mail that we sent you.",
}
